"""What stands in XLA's programs and profiles."""
