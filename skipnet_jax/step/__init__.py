"""The training step, its parts, and the three ways to run it."""
