"""What the stages of the workers do, how long it takes, and which one limits the run."""
