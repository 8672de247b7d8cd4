"""Compares what source, Postgres, Redis and the upstream's log say about a run."""
