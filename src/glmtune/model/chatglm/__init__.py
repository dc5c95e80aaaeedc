"""The ChatGLM2/3 model family, in the conventions of transformers."""
