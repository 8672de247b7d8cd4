"""HTTP requests: one attempt and what follows it, engines behind one protocol, the network, robots.txt."""
