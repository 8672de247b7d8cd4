"""Child processes that run the user's code outside the worker's event loop."""
