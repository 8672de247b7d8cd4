"""Everything workers share, and it lives in Redis; knows no HTTP client and no Postgres."""
