"""Trains a run, from its config to its summary."""
