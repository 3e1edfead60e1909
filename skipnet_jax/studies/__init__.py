"""The studies of the papers: their runs, a time budget and the results."""
