"""Reports of benchmarks: schema, files, tables, comparisons."""
