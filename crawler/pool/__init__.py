"""Child processes that run the user's code beside a worker's event loop."""
