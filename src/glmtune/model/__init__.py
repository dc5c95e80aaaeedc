"""Models and tokenizers: ChatGLM as a native model, and how checkpoints are read."""
