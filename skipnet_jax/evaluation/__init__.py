"""What `evaluate` shows: scores, curves, error maps."""
