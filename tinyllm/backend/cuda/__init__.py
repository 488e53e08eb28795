"""CuPy's overrides and kernels."""
