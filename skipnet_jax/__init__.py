"""Very deep residual FCNs with long and short skips, in JAX and Flax Linen."""

__version__ = '0.1.0'
