"""The rivals of shardcrawl, one file each, written as its users do, with its fastest settings.

`python -m ops.bench.rivals.NAME URLS DATABASE` reads a file of URLs, stores each body as jsonb in the table `pages`
with a primary key, prints when its first page came and its last was committed, and ends. None keeps the promises of
shardcrawl: what is in memory is lost when the process dies.
"""
