"""The bytes of a source: its files and pipes, their formats, and their text in pieces."""
