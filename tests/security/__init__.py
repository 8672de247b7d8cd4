"""What a hostile upstream, neighbour or file may send: attacks, and inputs made at random."""
