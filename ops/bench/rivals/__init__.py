"""What shardcrawl is measured against: one file for each rival, written as its users would, at its best settings.

Each is a process of its own, `python -m ops.bench.rivals.NAME URLS DATABASE`, that reads a file of URLs, stores every
body as jsonb in the table `pages` under a primary key, says when its first page came and its last was committed, and
ends. None keeps any of shardcrawl's promises: what is in memory is lost with the process.
"""
