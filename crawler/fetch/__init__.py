"""HTTP out: engines behind one small protocol, and the resolver that decides where they connect."""
