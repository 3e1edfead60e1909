"""The challenge's scores, and predictions of stacks of any size."""
