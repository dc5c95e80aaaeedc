"""Use a trained model: generate, chat, predict, export."""
