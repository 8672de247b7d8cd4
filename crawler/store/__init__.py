"""Postgres: the schema, the catalogue of runs, and batches that land once or not at all."""
