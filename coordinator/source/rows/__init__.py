"""Sources of rows: columns make the key, and others travel with it."""
