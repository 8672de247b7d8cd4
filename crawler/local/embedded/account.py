"""Decides which user runs Postgres: ourselves, or an unprivileged account when we are root, which Postgres refuses.

No account is made, and no folder's mode is changed for it. Where the account cannot enter a folder that Postgres needs,
Postgres is started with one capability that lets it in: CAP_DAC_READ_SEARCH, or CAP_DAC_OVERRIDE where we do not have
the first, or where the account may not run the binary either. See capabilities(7). Postgres calls access(2) on its own
binary, and that call looks at the capability only with SECBIT_NO_SETUID_FIXUP.
"""

from __future__ import annotations

import os
import pwd
import shutil
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from coordinator.errors import ShardcrawlError

# Numbers of bits, from linux/capability.h.
DAC_OVERRIDE = 1
DAC_READ_SEARCH = 2
SETPCAP = 8

# Bits of a file mode, of one class of users.
_SEARCH = 0o1
_READ_AND_EXECUTE = 0o5


@dataclass(frozen=True, slots=True)
class Account:
    """A user that a server runs as."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class RunAs:
    """How to start a command as a user: with `prefix` before it, or by changing to `account` between fork and exec."""

    prefix: tuple[str, ...] = ()
    account: Account | None = None


def account_for(cluster: Path) -> Account | None:
    """The account that must run Postgres on this cluster; None for ourselves.

    For root it is the owner of a cluster that exists, and `nobody` for a new one. Raises ShardcrawlError when there is
    no `nobody`.
    """
    if os.geteuid() != 0:
        return None
    if cluster.exists() and (found := cluster.stat()).st_uid != 0:
        return Account(str(found.st_uid), found.st_uid, found.st_gid)
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError as error:
        raise ShardcrawlError(
            "Postgres does not run as root, and there is no account nobody for it; run as an ordinary user"
        ) from error
    return Account(nobody.pw_name, nobody.pw_uid, nobody.pw_gid)


def run_as_account(account: Account | None, binary: Path, folders: Iterable[Path]) -> RunAs:
    """How to run `binary` as the account so that it can enter each of `folders`.

    Raises ShardcrawlError, with the folder's name, when it cannot enter one and we have no capability to give it.
    """
    if account is None:
        return RunAs()
    runnable = _allowed(binary.stat(), account, _READ_AND_EXECUTE)
    closed = next((found for path in (binary, *folders) if (found := _closed(path, account))), None)
    if closed is None and runnable:
        return RunAs(account=account)
    setpriv, capability = shutil.which("setpriv"), _capability(_own_capabilities(), runnable=runnable)
    if setpriv is None or capability is None:
        raise ShardcrawlError(
            f"Postgres does not run as root, and user {account.name} cannot enter {closed or binary}: name a folder "
            f"that user {account.name} can enter with --data (and install there too), or run as an ordinary user"
        )
    return RunAs(
        prefix=(
            setpriv,
            *(f"--reuid={account.uid}", f"--regid={account.gid}", "--clear-groups"),
            *(f"--inh-caps=+{capability}", f"--ambient-caps=+{capability}"),
            "--securebits=+no_setuid_fixup",
        )
    )


def _closed(path: Path, account: Account) -> Path | None:
    """The outermost folder on the way to `path` that the account may not search."""
    return next((p for p in reversed(path.resolve().parents) if not _allowed(p.stat(), account, _SEARCH)), None)


def _allowed(found: os.stat_result, account: Account, wanted: int) -> bool:
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid == account.uid:
        mode >>= 6
    elif found.st_gid == account.gid:
        mode >>= 3
    return mode & wanted == wanted


def _capability(ours: int, *, runnable: bool) -> str | None:
    """The least capability of ours that lets the account enter folders, and run the binary where it cannot yet."""
    if not ours >> SETPCAP & 1:
        return None
    if runnable and ours >> DAC_READ_SEARCH & 1:
        return "dac_read_search"
    return "dac_override" if ours >> DAC_OVERRIDE & 1 else None


def _own_capabilities() -> int:
    """The capabilities that this process may give to another, as Linux's bit set; 0 on other systems."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    sets = dict(line.split(":\t", 1) for line in lines if line.startswith("Cap"))
    return int(sets["CapPrm"], 16) & int(sets["CapBnd"], 16)
