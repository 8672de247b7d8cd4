"""What `[request]` of a job file says: its keys, and the places in its texts."""
