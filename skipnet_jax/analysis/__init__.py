"""Measurements on networks: gradients, routes, propagation, depth."""
