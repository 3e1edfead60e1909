"""A run's folder: what is written there, and how it is opened again."""
