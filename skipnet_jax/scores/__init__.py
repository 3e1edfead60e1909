"""The challenge's scores: numpy and numba alone."""
