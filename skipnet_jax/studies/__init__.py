"""The studies of the papers: what is run, within which time, and what came."""
