"""Runs as versions of a corpus: named, and published when they are complete."""
