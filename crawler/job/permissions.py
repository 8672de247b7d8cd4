"""What a machine lets the jobs of others do, whose documents it takes from Postgres."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from coordinator.errors import UsageError
from crawler.job.job import Job
from crawler.job.request.placeholders import SECRET
from crawler.job.request_checks import parse_network


@dataclass(frozen=True, slots=True)
class Permissions:
    """What `work` was allowed: nothing, unless options say more.

    `parsers` are functions as module:function, `secrets` names in the environment; a `*` in them stands for any text.
    `networks` are those that are not public and may be fetched from.
    """

    parsers: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()

    def check(self, job: Job) -> None:
        """Raise UsageError, with the options that are missing, when a job wants more than this machine allows."""
        functions = dict.fromkeys(job.functions)
        wanted = [f"--allow-parser {function}" for function in functions if not self._runs(function)]
        requests = [job.document.get("request"), job.document.get("kinds")]
        names = dict.fromkeys(name for text in _texts(requests) for name in SECRET.findall(text))
        wanted += [f"--allow-env {name}" for name in names if not _matches(name, self.secrets)]
        wanted += [f"--allow-private {text}" for text in job.request.allow_private if not self._reaches(text)]
        proxy = job.request.proxy
        if proxy and not SECRET.fullmatch(proxy) and not self._reaches(network := _network_of_proxy(proxy)):
            wanted.append(f"--allow-private {network}")
        if wanted:
            raise UsageError(
                f"its job wants more than this machine allows; where it shall run, start `shardcrawl work` with "
                f"{' '.join(wanted)}"
            )

    def secrets_in(self, environ: Mapping[str, str]) -> dict[str, str]:
        """The part of the environment that jobs may use."""
        return {name: value for name, value in environ.items() if _matches(name, self.secrets)}

    def _runs(self, function: str) -> bool:
        return _matches(function, self.parsers)

    def _reaches(self, text: str) -> bool:
        """Whether a network lies within one that is allowed."""
        wanted = parse_network(text)
        for allowed in map(parse_network, self.networks):
            if allowed.version == wanted.version and wanted.subnet_of(allowed):  # type: ignore[arg-type]  # same version
                return True
        return False


NOTHING_ALLOWED = Permissions()


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _network_of_proxy(proxy: str) -> str:
    """The network in which a job's proxy is: its address, and any for a name. It is itself connected to unchecked."""
    try:
        return str(ip_address(urlsplit(SECRET.sub("1", proxy)).hostname or ""))
    except ValueError:
        return "0.0.0.0/0"


def _texts(value: Any) -> Iterator[str]:
    """Every text in a part of a document."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one)
