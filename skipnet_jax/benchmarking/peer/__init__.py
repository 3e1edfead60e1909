"""Comparison with PyTorch; only this room imports torch."""
