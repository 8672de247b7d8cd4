"""The user's functions through which records go in batches, between the parser and the commit."""
