"""PyTorch, the same network beside ours: the only rooms that import torch."""
