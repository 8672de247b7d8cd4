"""The section `[request]` as a msgspec model; see crawler.job.models."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, field

from crawler.job.fields import (
    COOKIE_RULE,
    DURATION_TEXT,
    HEADER_RULE,
    MAX_FILL_SECONDS,
    Section,
    number,
    text,
    value,
)


# fmt: off
class LoginSettings(Section, frozen=True, kw_only=True):
    """A request that each worker sends before its first one, and again when the upstream responds with 401.

    An upstream that ends the older session of an account when a newer one begins takes one worker only. A login that
    is refused refuses keys, as a wrong password in `auth` would.
    """

    url: Annotated[str, text(
        "Where to log in, by POST.",
        "https://api.example.org/oauth/token")] = ""
    form: Annotated[dict[str, str | int | float | tuple[str, ...]], value(
        "The body as a form, with passwords as ${NAME}.",
        {"user": "${USER}", "password": "${PASSWORD}"}, each="must be a text")] | None = None
    json: Annotated[dict[str, Any], value(
        "The body as JSON, with passwords as ${NAME}.",
        {"user": "${USER}", "password": "${PASSWORD}"}, each="must be a name", kind="table")] | None = None
    headers: Annotated[dict[str, str], value(
        "Headers of this request.",
        {"Authorization": "Basic ${CLIENT}"}, each=HEADER_RULE)] = field(default_factory=dict)
    token: Annotated[str, text(
        "Where the JSON response has a token, as a path (`data.0.token`). It is sent as `Authorization: Bearer`, where "
        "credentials go.",
        "access_token", absent="none; the cookies of the response are sent")] | None = None


class RequestSettings(Section, frozen=True, kw_only=True):
    """How keys become HTTP requests.

    A text `${NAME}` in `url`, `headers`, `json`, `form`, `body`, `cookies`, `auth` and `proxy` stands for an
    environment variable of the worker; the secret itself is never stored, and `pages.url` has `${NAME}` too. Secrets,
    cookies and `auth` stay behind when a redirect leads to another origin.

    `{key}`, `{keys}` and the named fields of a source, `{name}`, stand for what a key has, in `url`, `headers`, `json`,
    `form` and `body`. A key without such a field is refused. `{{name}}` is the text {name}. `{since}` is what
    `[run] since` says, if that is given.

    """

    url: Annotated[str, text(
        "The URL of a request, with {key} or {keys} in it once, which the percent-encoded keys replace, or with "
        "named fields, {name}; {name:path} keeps slashes. ${NAME} may stand in its path or query. "
        "Without it every key is an absolute URL, which is read as browsers do it (WHATWG): spaces and letters beyond "
        "ASCII are encoded, backslashes are slashes, `/a/../b` is `/b`.",
        "https://api.example.org/works/{key}", absent="each key is a URL")] | None = None
    method: Annotated[Literal["GET", "POST", "PUT", "PATCH", "DELETE"], value(
        "The method of a request.",
        "PUT", write='write "GET", "POST", "PUT", "PATCH" or "DELETE"',
        absent="GET; POST with `json`, `form` or `body`")] | None = None
    json: Annotated[dict[str, Any] | list[Any], value(
        'The body of a request, as JSON. A text that is "{keys}" becomes the list of the keys, and "{name:number}" a '
        'number, with the digits that it has; "{keys:number}" is a list of numbers.',
        {"ids": "{keys}"}, write="write a table or a list")] | None = None
    form: Annotated[dict[str, str | int | float | tuple[str, ...]], value(
        "The body of a request, as a form. Several keys are joined by `separator`; a list is a field several times.",
        {"id": "{key}"}, each="must be a text, a number, or a list of texts", kind="table of texts")] | None = None
    body: Annotated[str, text(
        "The body of a request as a text; name its media type in `headers`, as Content-Type.",
        "<get id='{key}'/>", absent="none")] | None = None
    idempotent: Annotated[bool, value(
        "Whether a request may be sent again when nobody knows whether the upstream has carried it out: the connection "
        "broke, or a worker was killed. If not, its keys fail with `outcome unknown`.",
        True, absent="true for GET, PUT and DELETE, false for POST and PATCH")] | None = None
    keys_per_request: Annotated[int, number(
        "Keys that one request asks for. More than 1 needs a `url`.",
        50, 1, 500)] = 1
    fill: Annotated[
        Annotated[float, Meta(ge=0, le=MAX_FILL_SECONDS)] | Annotated[str, DURATION_TEXT],
        value(
        "How long a request with fewer keys than `keys_per_request` waits for more keys of a slow source, at most "
        "10 minutes. 0 waits for none.",
        "500ms", write='write a time like "1s", "500ms", "1min", or seconds')] = "1s"
    separator: Annotated[str, text(
        "What stands between the keys of one request; it is percent-encoded too.",
        ",")] = "|"
    headers: Annotated[dict[str, str], value(
        "Headers of every request.",
        {"Authorization": "Bearer ${TOKEN}"}, each=HEADER_RULE)] = field(default_factory=dict)
    cookies: Annotated[dict[str, str], value(
        "Cookies of every request.",
        {"session": "${SESSION}"}, each=COOKIE_RULE)] = field(default_factory=dict)
    cookie_jar: Annotated[bool, value(
        "Whether cookies that responses set are sent back, each worker its own: with a `url` by the rules of their "
        "domain, path and expiry; where keys are URLs only to the host that set them.",
        True, absent="false; true with a `login` that has no token")] = False
    auth: Annotated[str, text(
        "An Authorization header: basic:USER:PASSWORD or bearer:TOKEN, with the password or token as ${NAME}.",
        "bearer:${TOKEN}", "^(?:basic|bearer):")] | None = None
    hosts: Annotated[tuple[str, ...], value(
        "Where keys are URLs: the servers that get `auth`, `cookies` and headers with secrets; needed as soon as there "
        "is one of these. A host means https at its default port; another port or http is written out, like "
        "http://10.0.0.5:8080. Other hosts are asked without credentials.",
        ["api.example.org"])] = ()
    user_agent: Annotated[str, text(
        "Who asks. Name a contact here; `shardcrawl check` reminds you.",
        "my-crawl (me@example.org)")] = "shardcrawl (+https://pypi.org/project/shardcrawl/)"
    timeout: Annotated[float, number(
        "Seconds for one attempt, from connecting to the last byte of the body. Connecting may take half of it, and "
        "at most 8. An attempt that takes longer has failed, and `[retry]` decides.",
        60, 0.1, 3600)] = 30.0
    redirects: Annotated[int, number(
        "Redirects that are followed in a row; 0 follows none.",
        0, 0, 20)] = 5
    http2: Annotated[bool | Literal["prior-knowledge"], value(
        'true uses HTTP/2 where a server offers it in TLS; "prior-knowledge" speaks nothing else to any server, also '
        "without TLS.",
        True, write='write true, false or "prior-knowledge"')] = False
    engine: Annotated[Literal["pyreqwest", "httpx"], value(
        "The HTTP client.",
        "httpx", write="known are pyreqwest and httpx")] = "pyreqwest"
    allow_private: Annotated[tuple[str, ...], value(
        "Networks that are not public (loopback, 10.0.0.0/8, a cloud's metadata) and may still be fetched from. "
        "--allow-private adds to them.",
        ["10.0.0.0/8"])] = ()
    proxy: Annotated[str, text(
        "An http, https or socks5 URL through which every request goes, with its password as ${NAME}. The proxy looks "
        "up names, so a private address is refused only where it stands in the URL itself.",
        "http://me:${PASSWORD}@proxy.example.org:3128")] | None = None
    ca: Annotated[str, text(
        "A PEM file with certificates to trust beside the system's. A relative path begins at the job file's folder; "
        "the file must lie there on every machine with workers.",
        "ca.pem", absent="the system's certificates")] | None = None
    client_cert: Annotated[str, text(
        "A PEM file with a client certificate and its key, not encrypted; looked up like `ca`.",
        "client.pem")] | None = None
    max_body: Annotated[int, number(
        "Bytes of a body after decompression. A key with a larger one fails at once, without another attempt.",
        1_048_576, 1, 256 * 1024 * 1024)] = 16 * 1024 * 1024
    robots: Annotated[bool, value(
        "Whether each host's robots.txt is obeyed, Crawl-delay included.",
        False, absent="true where keys are URLs; false with a `url`, an API whose terms you know")] | None = None

    login: Annotated[LoginSettings, value(
        "A login before the first request; it is a section of its own, `[request.login]`.",
        {"url": "https://api.example.org/login", "json": {"key": "${KEY}"}, "token": "access_token"},
        write="write a table")] | None = None

    @property
    def sent_method(self) -> str:
        """The method of a request: by default POST when it has a body."""
        has_body = any(part is not None for part in (self.json, self.form, self.body))
        return self.method or ("POST" if has_body else "GET")

    @property
    def is_repeatable(self) -> bool:
        """Whether a request may be sent again when nobody knows whether the upstream has carried it out."""
        return self.sent_method in ("GET", "PUT", "DELETE") if self.idempotent is None else self.idempotent

    @property
    def keeps_cookies(self) -> bool:
        """Whether cookies that responses set are sent back."""
        return self.cookie_jar or (self.login is not None and self.login.token is None)

    @property
    def obeys_robots(self) -> bool:
        """Whether robots.txt is obeyed: by default where each key is a URL, and not with a request template."""
        return self.url is None if self.robots is None else self.robots
