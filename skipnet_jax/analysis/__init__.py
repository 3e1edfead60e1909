"""Measurements on networks: layers, gradients."""
