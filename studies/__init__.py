"""The experiments behind benchmarks/RESULTS.md."""
