"""The sample upstream, which the demo crawls, and examples, tests and benchmarks too."""
