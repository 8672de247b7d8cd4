"""Compares what source, Postgres, Redis and an upstream's log say about a run."""
