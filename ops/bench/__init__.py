"""Benchmarks: figures measured by whoever runs them, on the machine where they run."""
