"""What all workers of a run share. It lives in Redis; this package uses no HTTP client and no Postgres."""
