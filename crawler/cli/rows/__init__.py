"""Commands about the rows of runs: diff and export."""
