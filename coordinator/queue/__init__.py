"""The queue of a run in Redis: blocks in streams, the deferred set, the done set, the list of runs."""
