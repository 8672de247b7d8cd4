"""The page in a browser: runs, upstreams, workers, failed keys. It keeps nothing: each look reads both services."""
