"""The training step, the ways to run it, and the loop around it."""
