"""Ahead-of-time compilation for TPUs that this machine does not have."""
