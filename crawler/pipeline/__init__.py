"""The parts of a worker, from a claimed block to a batch that is due."""
