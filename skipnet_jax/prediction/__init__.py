"""An image in, a map out: slices and stacks of any size."""
