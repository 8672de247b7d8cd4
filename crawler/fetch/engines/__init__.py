"""HTTP engines behind one protocol: pyreqwest (fast) and httpx."""
