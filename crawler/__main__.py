"""`python -m crawler` is `shardcrawl`."""

from __future__ import annotations

from crawler.cli.main import main

if __name__ == "__main__":
    main()
