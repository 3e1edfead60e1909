"""Benchmarks: what is timed, how, on what, and what came out."""
