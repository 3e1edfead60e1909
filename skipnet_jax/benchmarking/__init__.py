"""Plans, measures and reports benchmarks of networks."""
