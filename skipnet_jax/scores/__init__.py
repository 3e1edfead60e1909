"""The scores of the ISBI 2012 challenge, with only NumPy and Numba."""
