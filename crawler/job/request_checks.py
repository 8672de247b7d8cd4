"""Pure: checks whether the requests that a job describes can be sent."""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Network, ip_network
from urllib.parse import urlsplit

from coordinator.errors import UsageError
from coordinator.url import InvalidUrl, parse
from crawler.job.fields import COOKIE_RULE, HEADER_RULE, MAX_FILL_SECONDS
from crawler.job.request.placeholders import KEY_NAMES, SECRET, fields_named, places_in, split_template
from crawler.job.request.settings import LoginSettings, RequestSettings

PROXY_SCHEMES = ("http", "https", "socks5")
# A line break in a header would begin another one.
HEADER_TEXT = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")
COOKIE_TEXT = re.compile(r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*")  # RFC 6265, section 4.1.1
_SECONDS_BY_UNIT = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# Headers that identify the sender, whatever is in them.
CREDENTIAL_NAMES = frozenset({"authorization", "cookie", "proxy-authorization"})
# What a header or a cookie is called that has a secret in it, and how the value of such a header begins.
_SECRET_HEADER = re.compile(
    r"(?:.*[-_])?(?:authorization|auth|token|secret|password|jwt|[a-z]*api-?key|(?:access|subscription|auth)-?key"
    r"|session(?:-?id)?|credentials?|signature)",
    re.IGNORECASE,
)
_SECRET_COOKIE = re.compile(r".*(?:sess|sid$|token|auth|jwt|secret|password)", re.IGNORECASE)
_SECRET_VALUE = re.compile(r"(?:Bearer|Basic|Digest|Token|ApiKey) +\S", re.IGNORECASE)


def check_request(request: RequestSettings) -> None:
    """Raise UsageError for the first setting of `[request]` that no request could carry out."""
    _check_fields("headers", request.headers, HEADER_TEXT, HEADER_RULE)
    _check_fields("cookies", request.cookies, COOKIE_TEXT, COOKIE_RULE)
    if not HEADER_TEXT.fullmatch(request.user_agent):
        raise UsageError("job: [request] user_agent must be a text in one line")
    named = {name.lower() for name in request.headers}
    if request.auth is not None:
        _check_auth(request.auth)
        if "authorization" in named:
            raise UsageError("job: [request] auth and headers.Authorization say the same thing; leave one out")
    if request.cookies and "cookie" in named:
        raise UsageError("job: [request] cookies and headers.Cookie say the same thing; leave one out")
    if request.keeps_cookies and (request.cookies or "cookie" in named):
        raise UsageError("job: [request] cookie_jar: the upstream sets the cookies then; leave yours out")
    if request.proxy is not None:
        _check_proxy(request.proxy)
    for network in request.allow_private:
        parse_network(network)
    if seconds_of(request.fill) > MAX_FILL_SECONDS:
        raise UsageError(f"job: [request] fill is {request.fill!r}; it must be at most 10min")
    _check_places(request)
    if request.login is not None:
        _check_login(request, request.login)
    _check_secrets(request)
    _check_hosts(request)


def credentials_in(request: RequestSettings) -> list[str]:
    """What identifies the sender to a server: "auth", "headers.Authorization", "cookies", "${KEY} in url"."""
    found = ["auth"] if request.auth is not None else []
    found += [f"headers.{name}" for name, text in request.headers.items() if is_credential(name, text)]
    found += ["cookies"] if request.cookies else []
    found += ["login"] if request.login is not None else []
    found += [f"${{{name}}} in url" for name in dict.fromkeys(SECRET.findall(request.url or ""))]
    in_body = (place for part in (request.json, request.form, request.body) for place in places_in(part))
    return found + [f"${{{name}}} in the body" for name in dict.fromkeys(p.name for p in in_body if p.is_secret)]


def is_credential(name: str, text: str) -> bool:
    """Whether a header goes only to the servers that credentials are for."""
    return name.lower() in CREDENTIAL_NAMES or SECRET.search(text) is not None


def credential_origins(request: RequestSettings) -> frozenset[str] | None:
    """The origins of `hosts`, where credentials go; None with a `url`, because then they go to its origin.

    Raises UsageError.
    """
    return None if request.url is not None else frozenset(map(_origin, request.hosts))


def seconds_of(duration: float | str) -> float:
    """A time of the job file in seconds."""
    if not isinstance(duration, str):
        return duration
    unit = duration.lstrip("0123456789. ")
    return float(duration.removesuffix(unit)) * _SECONDS_BY_UNIT[unit]


def parse_network(text: str) -> IPv4Network | IPv6Network:
    """The network in an entry of `allow_private`. Raises UsageError."""
    try:
        return ip_network(text)
    except ValueError as error:
        raise UsageError(f"job: [request] allow_private: {error}; write networks like 127.0.0.0/8") from None


def is_proxy(url: str) -> bool:
    """Whether a URL names a proxy: a scheme that we speak, a host, and nothing behind it."""
    try:
        parts = urlsplit(url)
        return parts.scheme in PROXY_SCHEMES and bool(parts.hostname) and parts.port != 0 and parts.path in ("", "/")
    except ValueError:  # the port is no number
        return False


def _check_places(request: RequestSettings) -> None:
    """Raise UsageError unless every request asks for its own key."""
    bodies = [name for name in ("json", "form", "body") if getattr(request, name) is not None]
    if len(bodies) > 1:
        raise UsageError(f"job: [request] {bodies[0]} and {bodies[1]}: a request has one body; leave one out")
    if request.url is None:
        if request.keys_per_request > 1:
            raise UsageError("job: [request] keys_per_request needs a url with {keys} in it")
        if any(place.is_secret for name in bodies for place in places_in(getattr(request, name))):
            raise UsageError(f"job: [request] {bodies[0]}: each key is a URL, and any server would get its secret")
    else:
        split_template(request.url)
        given = [request.url, *(getattr(request, name) for name in bodies)]
        places = [place for node in given for place in places_in(node) if not place.is_secret]
        if not places:
            where = f"url or {bodies[0]}" if bodies else "url"
            raise UsageError(f"[request] {where}: 0 placeholders; put {{key}} or {{keys}} in it once")
        if request.keys_per_request > 1 and not any(place.name in KEY_NAMES for place in places):
            raise UsageError("job: [request] keys_per_request needs {keys} in the url or the body")
    if request.keys_per_request > 1 and (fields := fields_named(request)):
        name, where = next(iter(fields.items()))
        raise UsageError(f"job: [request] {where}: {{{name}}} is of one key; leave keys_per_request out")
    if request.sent_method == "GET" and request.idempotent is False:
        raise UsageError("job: [request] idempotent: a GET may be sent again in any case; leave it out")
    for name, text in request.headers.items():
        places = list(places_in(text))
        if any(place.is_secret for place in places) and not all(place.is_secret for place in places):
            raise UsageError(f"job: [request] headers: {name!r} has a secret and a {{name}}; only one of them can be")


def _check_fields(key: str, fields: dict[str, str], allowed: re.Pattern[str], rule: str) -> None:
    for name, value in fields.items():
        if not _TOKEN.fullmatch(name) or not allowed.fullmatch(value):
            raise UsageError(f"job: [request] {key}: {name!r} {rule}")


def _check_login(request: RequestSettings, login: LoginSettings) -> None:
    """Raise UsageError unless the login can be sent, and has no secret written out."""
    if not login.url:
        raise UsageError("job: [request.login] needs a url")
    try:
        parse(login.url)
    except InvalidUrl as error:
        raise UsageError(f"job: [request.login] url: it {error}") from None
    if login.form is not None and login.json is not None:
        raise UsageError("job: [request.login] form and json: a request has one body; leave one out")
    _check_fields("login.headers", login.headers, HEADER_TEXT, HEADER_RULE)
    if any(not place.is_secret for node in (login.form, login.json, login.headers) for place in places_in(node)):
        raise UsageError("job: [request.login]: it is sent for no key; write {{name}} for the text {name}")
    if any(places_in(login.url)):
        raise UsageError("job: [request.login] url: no ${NAME} may stand in it; put it into form, json or headers")
    for key, node in (("form", login.form), ("json", login.json), ("headers", login.headers)):
        for name, text in (node or {}).items():
            if isinstance(text, str) and _SECRET_HEADER.fullmatch(name) and not SECRET.search(text):
                raise UsageError(_written_out(f"login.{key}", name, ""))
    if login.token and (request.auth is not None or "authorization" in {name.lower() for name in request.headers}):
        raise UsageError("job: [request] login.token and auth both make an Authorization header; leave one out")


def _check_auth(auth: str) -> None:
    scheme, _, rest = auth.partition(":")
    secret = rest.partition(":")[2] if scheme == "basic" else rest
    if scheme not in ("basic", "bearer") or not SECRET.search(secret):
        # A job is kept in Postgres, so a password in it would be too.
        raise UsageError(
            "job: [request] auth: write basic:USER:${PASSWORD} or bearer:${TOKEN}; the secret stays in the environment"
        )


def _check_secrets(request: RequestSettings) -> None:
    """Raise UsageError for a secret that is written out: a job is kept in Redis and Postgres, and it would be too."""
    for name, text in request.headers.items():
        if name.lower() == "cookie":
            pairs = (pair.partition("=") for pair in text.split(";"))
            secret = next((cookie.strip() for cookie, _, value in pairs if _is_secret_cookie(cookie, value)), None)
            if secret is not None:
                raise UsageError(_written_out("cookies", secret, ""))
        elif not SECRET.search(text) and (_SECRET_HEADER.fullmatch(name) or _SECRET_VALUE.match(text)):
            scheme = text.partition(" ")[0] + " " if _SECRET_VALUE.match(text) else ""
            raise UsageError(_written_out("headers", name, scheme))
    for name, text in request.cookies.items():
        if _is_secret_cookie(name, text):
            raise UsageError(_written_out("cookies", name, ""))


def _is_secret_cookie(name: str, text: str) -> bool:
    return _SECRET_COOKIE.match(name.strip()) is not None and not SECRET.search(text)


def _written_out(key: str, name: str, scheme: str) -> str:
    secret = "TOKEN" if scheme else re.sub(r"[^A-Z0-9]+", "_", name.upper()).strip("_") or "SECRET"
    return (
        f"job: [request] {key}: {name!r} has its secret written out, and a job is stored: write "
        f'{key} = {{ {name} = "{scheme}${{{secret}}}" }} and set {secret} in the environment'
    )


def _check_hosts(request: RequestSettings) -> None:
    """Raise UsageError unless it is said where credentials go."""
    if request.url is not None:
        if request.hosts:
            raise UsageError("job: [request] hosts: with a url, credentials go to its host; leave hosts out")
        return
    credential_origins(request)
    if not request.hosts and (found := credentials_in(request)):
        raise UsageError(
            f"job: [request] {', '.join(found)}: each key is a URL, and nobody says which servers may have that; "
            'name them like hosts = ["api.example.org"]'
        )


def _origin(host: str) -> str:
    """The origin in an entry of `hosts`; without a scheme it is that of https. Raises UsageError."""
    try:
        target = parse(host if "://" in host else f"https://{host}")
        wrong = "is no single host" if target.path != "/" or "*" in target.origin.host else None
    except InvalidUrl as error:
        wrong = str(error)
    if wrong:
        raise UsageError(
            f'job: [request] hosts: {host!r} {wrong}; write one like "api.example.org", which means https, '
            'or with its scheme like "http://10.0.0.5:8080"'
        )
    return target.origin.text


def _check_proxy(proxy: str) -> None:
    if SECRET.fullmatch(proxy):
        return  # a whole URL in the environment; `resolve_credentials` checks it
    if not is_proxy(SECRET.sub("1", proxy)):
        raise UsageError(
            "job: [request] proxy: write it like http://host:3128, https://host:3128 or socks5://host:1080"
        )
    password = proxy.rpartition("@")[0].partition("://")[2].partition(":")[2]
    if password and not SECRET.search(password):
        raise UsageError("job: [request] proxy: write its password as ${NAME}; the secret stays in the environment")
