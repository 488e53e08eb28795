"""The version, alone in its file so that building reads it without importing NumPy."""

__version__ = "0.1.0"
