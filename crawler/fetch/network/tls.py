"""The certificates that a job names: an authority to trust, and our own."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from coordinator.errors import UsageError
from crawler.job.request.settings import RequestSettings


@dataclass(frozen=True, slots=True)
class Certificates:
    """PEM files: `ca` is trusted beside the system's roots, `client` has our certificate and its key."""

    ca: Path | None = None
    client: Path | None = None


NO_CERTIFICATES = Certificates()


def read_certificates(request: RequestSettings, folder: str) -> Certificates:
    """Return the files that a job names, relative to its folder. Raises UsageError if one cannot be read or used."""
    found = Certificates(
        ca=None if request.ca is None else Path(folder, request.ca),
        client=None if request.client_cert is None else Path(folder, request.client_cert),
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if found.ca is not None:
        try:
            context.load_verify_locations(found.ca)
        except (OSError, ssl.SSLError) as error:
            raise _unusable("ca", found.ca, "certificates", error) from error
    if found.client is not None:
        try:
            # With no password given, OpenSSL would ask for one on the terminal.
            context.load_cert_chain(found.client, password="")
        except (OSError, ssl.SSLError) as error:
            raise _unusable("client_cert", found.client, "a certificate and its key, unencrypted", error) from error
    return found


def _unusable(key: str, path: Path, content: str, error: OSError) -> UsageError:
    problem = "is no PEM file with" if isinstance(error, ssl.SSLError) else f"{error.strerror}; name a PEM file with"
    return UsageError(f"job: [request] {key}: {path}: {problem} {content}")
