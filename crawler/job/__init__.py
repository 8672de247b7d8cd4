"""The job file: its models, reading it, and its reference. This room imports no other room of `crawler`."""
