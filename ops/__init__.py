"""What runs around shardcrawl: local upstreams, deployment, benchmarks."""
