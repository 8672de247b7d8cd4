"""Postgres: the schema, the catalogue of runs, and batches that are stored once or not at all."""
