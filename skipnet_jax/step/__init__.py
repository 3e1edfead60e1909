"""The training step: what it is made of, and the three ways to run it."""
