"""Models in files: Hugging Face folders, GGUF, the hub."""
