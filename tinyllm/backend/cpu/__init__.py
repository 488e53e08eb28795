"""NumPy's overrides and the threads that share them."""
