"""Reads compiled programs (HLO) and profiles."""
