"""One file a family: its names and fields on Hugging Face."""
