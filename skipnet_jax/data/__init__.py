"""Stacks, splits, augmentation and batches; nothing of models or training."""
