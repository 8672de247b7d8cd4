"""The keys that a response names: by links and paths, and the next page of a list."""
