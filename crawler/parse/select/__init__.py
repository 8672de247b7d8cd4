"""Records without code: the selectors of the job file, compiled once, and applied to each response."""
