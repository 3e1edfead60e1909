"""The report of a benchmark: its schema, its tables, comparisons."""
