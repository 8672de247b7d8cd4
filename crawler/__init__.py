"""HTTP in, Postgres out: the workers, and the doors through which users come."""
