"""An OpenAI-compatible server of a model and adapters over it, and a page to chat with them."""
