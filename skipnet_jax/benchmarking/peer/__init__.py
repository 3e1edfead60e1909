"""Comparison with PyTorch; only this package imports torch."""
