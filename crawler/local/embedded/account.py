"""As which user the servers run when we are root: an account of their own, which is nobody else's and may do nothing.

It is a number without an entry in passwd, from a range that systemd and Debian leave free. The servers get their
folders as open descriptors, so it need not be able to enter what is above them, and gets no capability. initdb alone
asks passwd for its user's name: it runs as `nobody`, with the account's group, in a folder that only root can enter. A
process of nobody has another group, so it can neither trace it nor look into its folders.
"""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import stat
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from coordinator.errors import ShardcrawlError

FREE_IDS = range(60_578, 60_706)  # systemd's table of user ids calls them unused
ADVICE = "run as an ordinary user, or name running services with --redis and --database"
# Numbers of bits, from linux/capability.h.
NEEDED_CAPABILITIES = {"CHOWN": 0, "DAC_OVERRIDE": 1, "FOWNER": 3, "KILL": 5, "SETGID": 6, "SETUID": 7}

# Bits of a file mode, of one class of users.
_SEARCH = 0o1
_READ_AND_EXECUTE = 0o5


@dataclass(frozen=True, slots=True)
class Account:
    """A user and a group that a server runs as."""

    uid: int
    gid: int


def account_of_servers() -> Account | None:
    """The account that runs the servers; None for ourselves.

    Raises ShardcrawlError when we are root and may not change to another account.
    """
    if os.geteuid() != 0:
        return None
    ours = _own_capabilities()
    if missing := [name for name, bit in NEEDED_CAPABILITIES.items() if ours is not None and not ours >> bit & 1]:
        raise ShardcrawlError(
            f"the embedded servers do not run as root, and root has no CAP_{missing[0]} here to give them an account "
            f"of their own; {ADVICE}"
        )
    number = next(number for number in FREE_IDS if not _is_taken(number))
    return Account(number, number)


def initdb_account(account: Account | None) -> Account | None:
    """The account that makes a cluster for `account`. Raises ShardcrawlError when there is no `nobody`."""
    if account is None:
        return None
    try:
        return Account(pwd.getpwnam("nobody").pw_uid, account.gid)
    except KeyError as error:
        raise ShardcrawlError(f"there is no account nobody, as which root could run initdb; {ADVICE}") from error


def user_name() -> str:
    """The name of our user, by which Postgres knows us. Raises ShardcrawlError when passwd has none."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError as error:
        raise ShardcrawlError(
            f"user {os.geteuid()} has no name in passwd, which the embedded Postgres needs; give it one, {ADVICE}"
        ) from error


def owners_of_server_folders() -> Collection[int]:
    """Who may own a server's folder: we, and as root an account of servers, or `nobody` as older versions had it."""
    if os.geteuid() != 0:
        return (os.geteuid(),)
    with suppress(KeyError):
        return (0, *FREE_IDS, pwd.getpwnam("nobody").pw_uid)
    return (0, *FREE_IDS)


def hand_over(folder: int, account: Account | None) -> None:
    """Give an open folder and what its owner has in it to the account, if there is one. Raises OSError."""
    former = os.fstat(folder).st_uid
    if account is None or former == account.uid:
        return
    for _, folders, files, within in os.fwalk(".", dir_fd=folder, follow_symlinks=False):
        for name in (*folders, *files):
            try:
                entry = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=within)
            except OSError:  # a link or a socket, whose owner says nothing
                continue
            try:
                found = os.fstat(entry)
                # What has another name may stand outside of this folder.
                if found.st_uid == former and (stat.S_ISDIR(found.st_mode) or found.st_nlink == 1):
                    os.fchown(entry, account.uid, account.gid)
            finally:
                os.close(entry)
    os.fchown(folder, account.uid, account.gid)  # last, so that after a kill it is done again


def program_for(account: Account | None, program: Path, site: Path, parts: Sequence[Path], place: Path) -> Path:
    """`program`, or a copy of it in `place` when the account cannot run it where it is installed.

    `parts` are the files and folders below `site` that it needs. Raises OSError.
    """
    if account is None or _may_run(program, account):
        return program
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for part in parts:
        copy = place / part.relative_to(site)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if part.is_dir():
            shutil.copytree(part, copy)
        else:
            shutil.copyfile(part, copy)
    for path in (place.parent, place, *place.rglob("*")):
        path.chmod(0o755)
    return place / program.relative_to(site)


def _may_run(program: Path, account: Account) -> bool:
    folders = program.resolve().parents
    return _allows(program, account, _READ_AND_EXECUTE) and all(_allows(path, account, _SEARCH) for path in folders)


def _allows(path: Path, account: Account, wanted: int) -> bool:
    found = path.stat()
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid == account.uid:
        mode >>= 6
    elif found.st_gid == account.gid:
        mode >>= 3
    return mode & wanted == wanted


def _is_taken(number: int) -> bool:
    with suppress(KeyError):
        return bool(pwd.getpwuid(number))
    with suppress(KeyError):
        return bool(grp.getgrgid(number))
    return False


def _own_capabilities() -> int | None:
    """The capabilities of this process, as Linux's bit set; None on other systems, where root may do everything."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1], 16) for line in lines if line.startswith("CapEff:")), None)
