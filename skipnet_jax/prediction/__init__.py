"""An image in, a map or cells out: slices and stacks of any size."""

# Decides where Numba keeps compiled functions, before any is made here.
from skipnet_jax import scores as _scores  # noqa: F401
