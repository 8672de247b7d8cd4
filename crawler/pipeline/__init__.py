"""A worker's inside, from a claimed block to a batch that is ready to be committed."""
