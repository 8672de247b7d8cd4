"""A small upstream that comes with shardcrawl: the demo crawls it, and so do tests, examples and benchmarks."""
