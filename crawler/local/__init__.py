"""A run on this machine: its child processes, its services, and the events that tell of it."""
