"""The cookies that upstreams set, kept for a worker and sent back to where they belong."""

from __future__ import annotations

import re
from email.message import Message
from http.cookiejar import Cookie, CookieJar, DefaultCookiePolicy
from typing import Any
from urllib.request import Request as UrllibRequest

from coordinator.url import Target
from crawler.model import Headers

MAX_SITES = 10_000
# When a site has set more cookies, those of its last response take the place of them all. Browsers keep about as many.
MAX_COOKIES_OF_A_SITE = 180
MAX_COOKIE_CHARACTERS = 4096
# What counts of a Set-Cookie field, and the values that count.
_ATTRIBUTES = {
    "domain": re.compile(r"\.?[^.].*"),
    "path": re.compile(r"/.*"),
    "max-age": re.compile(r"-?[0-9]+"),
    "expires": re.compile(r".+"),
    "secure": re.compile(r".*"),
}


class WorkerCookies:
    """Cookies by the rules of the standard library: domain, path, expiry, Secure.

    With `one_site` a cookie may be for a whole domain, as its upstream says. Without, where keys are URLs of anybody,
    each is for the host that set it: which domains belong to one owner, nobody here knows.
    """

    def __init__(self, *, one_site: bool) -> None:
        self._one_site = one_site
        self._jars: dict[str, CookieJar] = {}

    def header(self, target: Target) -> str | None:
        """The Cookie header of a request to this target, None without cookies."""
        jar = self._jars.get(self._site(target))
        if jar is None:
            return None
        request = UrllibRequest(target.href)  # noqa: S310 - nothing is opened, and a target is http or https
        jar.add_cookie_header(request)
        return request.get_header("Cookie")

    def receive(self, target: Target, headers: Headers) -> None:
        """Keep the cookies that a response from this target sets."""
        if not headers.has(("set-cookie",)):
            return
        site, received = self._site(target), _Received(headers, target.origin.host)
        if site not in self._jars:
            if len(self._jars) >= MAX_SITES:
                del self._jars[next(iter(self._jars))]
            self._jars[site] = CookieJar(_Policy(self._one_site))
        jar = self._jars[site]
        request: Any = UrllibRequest(target.href)  # noqa: S310 - nothing is opened, and a target is http or https
        jar.extract_cookies(received, request)  # type: ignore[arg-type]  # only info() is used
        if len(jar) > MAX_COOKIES_OF_A_SITE:
            jar.clear()
            jar.extract_cookies(received, request)  # type: ignore[arg-type]  # as above

    def _site(self, target: Target) -> str:
        return "" if self._one_site else target.origin.host


class _Received:
    """A response as the standard library's jar reads it."""

    def __init__(self, headers: Headers, host: str) -> None:
        self._message = Message()
        for name, text in headers.items():
            if name == "set-cookie":
                self._message["Set-Cookie"] = _as_standard(text, host)

    def info(self) -> Message:
        return self._message


def _as_standard(set_cookie: str, host: str) -> str:
    """A Set-Cookie field without the attributes, and the values of attributes, that RFC 6265, section 5.2, leaves out.

    The library would keep no cookie that has one of them, nor one for a host of a single label, like localhost. Of
    several attributes of one name the last one counts.
    """
    pair, *rest = set_cookie.split(";")
    found: dict[str, str] = {}
    for attribute in rest:
        name, _, value = (part.strip() for part in attribute.partition("="))
        counts = _ATTRIBUTES.get(name := name.lower())
        if counts is None:
            continue
        if counts.fullmatch(value) and not (name == "domain" and value.lower() == host and "." not in host):
            found[name] = attribute
        elif name == "path":  # one that does not count stands for none
            found.pop(name, None)
    return ";".join([pair, *("secure" if name == "secure" else attribute for name, attribute in found.items())])


class _Policy(DefaultCookiePolicy):
    """A cookie without Domain is only for its host (RFC 6265), and none is for a suffix like .co.uk.

    One that is no ASCII, or a long one, is not kept: no request could be sent with it.
    """

    def __init__(self, one_site: bool) -> None:
        super().__init__(strict_domain=True, strict_ns_domain=DefaultCookiePolicy.DomainStrictNonDomain)
        self._one_site = one_site

    def set_ok(self, cookie: Cookie, request: UrllibRequest) -> bool:
        if not self._one_site and cookie.domain_specified:
            cookie.domain = request.host.partition(":")[0].lower()
            cookie.domain_specified = cookie.domain_initial_dot = False
        text = f"{cookie.name}={cookie.value}"
        is_small = len(text) <= MAX_COOKIE_CHARACTERS and text.isascii()
        return is_small and bool(super().set_ok(cookie, request))
