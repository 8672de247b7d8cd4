"""A run on this machine: its child processes, its services, and events of what happens."""
