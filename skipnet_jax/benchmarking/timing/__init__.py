"""Measures time, power and rates of devices; counts the work of a network."""
