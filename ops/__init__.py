"""What runs around shardcrawl: deployment, benchmarks and the nginx they measure against."""
