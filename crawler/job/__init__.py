"""The job file: its models, how it is read, and its reference."""
