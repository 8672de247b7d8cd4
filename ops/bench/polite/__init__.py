"""The benchmark of politeness: one module for each kind of promise, and the upstreams that count for themselves."""
