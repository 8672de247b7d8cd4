"""What Python programs and notebooks call: a connection, runs in a thread, what came of them, keys of the program."""
