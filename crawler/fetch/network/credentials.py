"""The headers and the proxy of a job's requests. Only this file replaces ${NAME} by a secret of the environment."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from urllib.parse import quote, unquote

from coordinator.errors import UsageError
from coordinator.url import Target, parse
from crawler.job.job import Job
from crawler.job.request.placeholders import SECRET, places_in, split_template, without_places
from crawler.job.request.settings import RequestSettings
from crawler.job.request_checks import COOKIE_TEXT, HEADER_TEXT, credential_origins, is_credential, is_proxy

Pairs = tuple[tuple[str, str], ...]

# A ${NAME} of the template as it stands in a target: the URL Standard encodes braces in a path, and not in a query.
_PLACE_IN_TARGET = re.compile(r"\$(?:\{|%7B)([A-Za-z_][A-Za-z0-9_]*)(?:\}|%7D)")
# A shorter text can stand in a URL by chance.
MIN_HIDDEN_CHARACTERS = 6
ANY_TEXT = re.compile(r"(?s:.*)")


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a job sends with its requests.

    `headers` are sent with every request. `secret_headers` are those that identify the sender (Authorization, Cookie,
    Proxy-Authorization) or have a secret in them; they are sent only to the origin that they are for. `proxy` is the
    proxy's URL with user and password. `url_secrets` are those in the request template by name, percent-encoded.
    `body_secrets` are those in the body of a request, and in that of the login, by name.
    `login_headers` are those of the login.
    `origins` are the only ones that credentials are for; None: they are for the first origin of every request.
    `url_secrets_at` has those of `url_secrets` that an origin may get; None: every one of `origins` gets all.
    """

    headers: Pairs = ()
    secret_headers: Pairs = field(default=(), repr=False)
    proxy: str | None = field(default=None, repr=False)
    url_secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    origins: frozenset[str] | None = None
    body_secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    login_headers: Pairs = field(default=(), repr=False)
    url_secrets_at: Mapping[str, Mapping[str, str]] | None = field(default=None, repr=False)
    _spellings: tuple[tuple[re.Pattern[str], str], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Compile the spellings of the secrets in URLs."""
        secrets = {name: unquote(value) for name, value in self.url_secrets.items()}
        found = (
            (_spelled(text), f"${{{name}}}") for name, text in secrets.items() if len(text) >= MIN_HIDDEN_CHARACTERS
        )
        object.__setattr__(self, "_spellings", tuple(found))

    def filled(self, target: Target) -> Target:
        """Return the target with the secrets of the template in it. Only an engine may have it: it is not shown."""

        at = self.url_secrets_at
        secrets = self.url_secrets if at is None else at.get(target.origin.text, {})

        def secret(match: re.Match[str]) -> str:
            return secrets.get(match[1], match[0])

        return Target(target.origin, _PLACE_IN_TARGET.sub(secret, target.path))

    def hidden(self, text: str) -> str:
        """Return a text that may quote the URL of a request, with ${NAME} for each secret of the template."""
        for spelled, place in self._spellings:
            text = spelled.sub(place, text)
        return text

    def headers_of(self, headers: Pairs, with_credentials: bool) -> Pairs:
        """Return a request's own headers, and the secret headers whose names are not among them."""
        if not with_credentials or not self.secret_headers:
            return headers
        if not headers:
            return self.secret_headers
        own = {name.lower() for name, _ in headers}
        return (*(pair for pair in self.secret_headers if pair[0].lower() not in own), *headers)


def _spelled(secret: str) -> re.Pattern[str]:
    """What matches a secret in a URL, however its characters are encoded there."""
    encoded = ("".join(f"%{byte:02x}" for byte in character.encode()) for character in secret)
    pairs = zip(secret, encoded, strict=True)
    return re.compile("".join(f"(?:{re.escape(one)}|(?i:{code}){'|[+]' if one == ' ' else ''})" for one, code in pairs))


NO_CREDENTIALS = Credentials()


def resolve_credentials(request: RequestSettings, environ: Mapping[str, str]) -> Credentials:
    """Return the credentials that a job describes, with each ${NAME} replaced from `environ`.

    Raises UsageError if a name is not set, or if its value has a line break.
    """
    headers: list[tuple[str, str]] = []
    secret_headers: list[tuple[str, str]] = []
    for name, written in request.headers.items():
        if (text := without_places(written)) is None:
            continue  # the template makes it for each request
        (secret_headers if is_credential(name, text) else headers).append((name, _filled(text, "headers", environ)))
    if request.auth is not None:
        secret_headers.append(("Authorization", _authorization(request.auth, environ)))
    if request.cookies:
        cookies = (f"{name}={_filled(text, 'cookies', environ, COOKIE_TEXT)}" for name, text in request.cookies.items())
        secret_headers.append(("Cookie", "; ".join(cookies)))
    proxy = None if request.proxy is None else _proxy(request.proxy, environ)
    login = request.login
    texts = [request.json, request.form, request.body]
    texts += [] if login is None else [login.form, login.json]
    in_body = {place.name for part in texts for place in places_in(part) if place.is_secret}
    in_headers = {} if login is None else login.headers
    login_headers = tuple((name, _filled(text, "login.headers", environ)) for name, text in in_headers.items())
    body_secrets = {name: _filled(f"${{{name}}}", "body", environ, ANY_TEXT) for name in sorted(in_body)}
    in_url = SECRET.findall(request.url or "")
    url_secrets = {name: quote(_filled(f"${{{name}}}", "url", environ, ANY_TEXT), safe="") for name in in_url}
    return Credentials(
        tuple(headers),
        tuple(secret_headers),
        proxy,
        url_secrets,
        credential_origins(request),
        body_secrets,
        login_headers,
    )


def resolve_every(jobs: Sequence[Job], environ: Mapping[str, str]) -> Credentials:
    """The credentials of a job, from the jobs of its kinds: that of the source's keys comes first.

    With several kinds, credentials go to the origins of their `url` and to `hosts`, and each secret of a `url` to the
    origin of that one only. Raises UsageError as resolve_credentials does.
    """
    first, *others = (resolve_credentials(job.request, environ) for job in jobs)
    if not others:
        return first
    at: dict[str, dict[str, str]] = {}
    for job, found in zip(jobs, (first, *others), strict=True):
        if job.request.url is not None:
            origin = parse(str(split_template(job.request.url)[0])).origin
            upgraded = f"https://{origin.host}" if origin.text == f"http://{origin.host}" else origin.text
            for text in (origin.text, upgraded):  # as may_carry_credentials
                at.setdefault(text, {}).update(found.url_secrets)
    hosts = frozenset().union(*(found.origins or () for found in (first, *others)))
    secrets = {name: value for one in at.values() for name, value in one.items()}
    return replace(first, url_secrets=secrets, url_secrets_at=at, origins=hosts | frozenset(at))


def _authorization(auth: str, environ: Mapping[str, str]) -> str:
    """Return the value of Authorization for `basic:USER:PASSWORD` (RFC 7617) or `bearer:TOKEN` (RFC 6750)."""
    scheme, _, rest = auth.partition(":")
    if scheme == "bearer":
        return f"Bearer {_filled(rest, 'auth', environ)}"
    user, _, password = rest.partition(":")
    user, password = _filled(user, "auth", environ), _filled(password, "auth", environ)
    if ":" in user:
        raise UsageError("job: [request] auth: a user name for basic may have no colon in it")
    return f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"


def _proxy(proxy: str, environ: Mapping[str, str]) -> str:
    """Return the proxy's URL; secrets before its @ are percent-encoded, so that a password may have any character."""
    userinfo, at, place = proxy.rpartition("@")
    encoded = {name: quote(environ[name], safe="") for name in SECRET.findall(userinfo) if name in environ}
    url = _filled(userinfo, "proxy", encoded) + at + _filled(place, "proxy", environ)
    if not is_proxy(url):
        raise UsageError("job: [request] proxy: with its ${NAME} filled in it is no http, https or socks5 URL")
    return url


def _filled(text: str, key: str, environ: Mapping[str, str], allowed: re.Pattern[str] = HEADER_TEXT) -> str:
    return fill_secrets(text, f"[request] {key}", environ, allowed)


def fill_secrets(text: str, where: str, environ: Mapping[str, str], allowed: re.Pattern[str] = HEADER_TEXT) -> str:
    """The text of a setting with its secrets in place of ${NAME}. Raises UsageError, which says `where` it stands."""

    def secret(match: re.Match[str]) -> str:
        value = environ.get(match[1])
        if value is None:
            raise UsageError(f"job: {where}: ${{{match[1]}}} is not set in the environment")
        if not allowed.fullmatch(value):
            raise UsageError(
                f"job: {where}: ${{{match[1]}}} has a line break, or another character that cannot stand there"
            )
        return value

    return SECRET.sub(secret, text)
