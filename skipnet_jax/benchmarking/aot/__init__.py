"""Ahead-of-time compilation for TPUs and GPUs, none of which is needed."""
