"""Which budget a URL belongs to."""

from __future__ import annotations

import pytest

import coordinator.limits.matcher
from coordinator.limits.matcher import UpstreamMatcher
from coordinator.settings import POLITE, LimitSettings, Window
from coordinator.url import parse


def limit(rate: float) -> LimitSettings:
    return LimitSettings((Window(rate, 1.0),))


NAMES = (
    *("en.wikipedia.org", "*.wikipedia.org", "*.m.wikipedia.org", "api.example.org/v2/*", "api.example.org/v2/slow/*"),
    *("api.example.org", "*.example.org/v2/*", "127.0.0.1", "exact.example/feed", "exact.example:8443", "*.example:99"),
)
UPSTREAMS = UpstreamMatcher({name: limit(number + 1) for number, name in enumerate(NAMES)})


@pytest.mark.parametrize(
    ("url", "upstream"),
    [
        ("https://en.wikipedia.org/wiki/US", "en.wikipedia.org"),
        ("HTTPS://EN.Wikipedia.ORG/wiki/US", "en.wikipedia.org"),
        ("https://de.wikipedia.org/", "*.wikipedia.org"),
        ("https://fr.wikipedia.org", "*.wikipedia.org"),
        ("https://de.m.wikipedia.org/", "*.m.wikipedia.org"),
        ("https://wikipedia.org/", "wikipedia.org"),
        ("https://de.wikipedia.org:8443/", "*.wikipedia.org"),
        ("https://en.wikipedia.org:8443/", "en.wikipedia.org"),
        ("https://de.wikipedia.org.evil.example/", "de.wikipedia.org.evil.example"),
        ("https://api.example.org/v2/items?id=1", "api.example.org/v2/*"),
        ("https://API.example.org/v2/", "api.example.org/v2/*"),
        ("https://api.example.org/v2/slow/1", "api.example.org/v2/slow/*"),
        ("https://api.example.org/V2/items", "api.example.org"),
        ("https://api.example.org/v1/v2/", "api.example.org"),
        ("https://api.example.org", "api.example.org"),
        ("https://other.example.org/v2/a", "*.example.org/v2/*"),
        ("https://other.example.org/v1/a", "other.example.org"),
        ("http://127.0.0.1:8080/a", "127.0.0.1"),
        ("http://127.0.0.1/a", "127.0.0.1"),
        ("http://127.1:8080\\a", "127.0.0.1"),
        ("http://2130706433", "127.0.0.1"),
        ("http://[::ffff:7f00:1]:1/", "127.0.0.1"),
        ("https://exact.example/feed", "exact.example/feed"),
        ("https://exact.example/feed#part", "exact.example/feed"),
        ("https://exact.example/feeds", "exact.example"),
        ("https://exact.example:444/a/..\\%2e/./feed", "exact.example/feed"),
        ("https://exact.example:8443/feeds", "exact.example:8443"),
        ("https://exact.example.:8443", "exact.example:8443"),
        ("https://b.example:99/", "*.example:99"),
        ("https://exact.example:99/", "*.example:99"),
        ("http://x.example:8080/a", "x.example:8080"),
        ("http://x.example", "x.example"),
        ("http://x.example?q=a/b", "x.example"),
        ("http://x.example#a/b", "x.example"),
        ("http://x.example/?u=http://y.example/", "x.example"),
        ("http://@x.example./", "x.example"),
        ("http://x.example\\a", "x.example"),
        ("http:/x.example:80", "x.example"),
        ("https://X.example:443", "x.example"),
        ("http://x.example:443", "x.example:443"),
        ("https://b\xfccher.example", "xn--bcher-kva.example"),
        ("http://[2001:DB8::1]/a", "[2001:db8::1]"),
        ("http://[::1]:8080/a", "[::1]:8080"),
    ],
)
def test_the_most_specific_entry_wins_and_every_other_host_is_its_own_upstream(url: str, upstream: str) -> None:
    assert UPSTREAMS.upstream_of(parse(url)) == upstream
    assert UPSTREAMS.upstream_of(parse(url)) == upstream, "and once more, from the cache"


@pytest.mark.parametrize(("number", "name"), list(enumerate(NAMES)))
def test_each_entry_is_one_budget(number: int, name: str) -> None:
    assert UPSTREAMS.limit(name) == limit(number + 1)
    assert UPSTREAMS.has_own_limit(name)


def test_other_hosts_get_the_limit_of_the_star_each_else_the_polite_default() -> None:
    star = UpstreamMatcher({"*": limit(7), "x.example": LimitSettings()})
    assert (star.upstream_of(parse("https://a.example/")), star.limit("a.example")) == ("a.example", limit(7))
    assert star.limit("x.example") == LimitSettings(), "an entry without a rate lifts it"
    assert UpstreamMatcher({}).limit("a.example") is POLITE
    assert UpstreamMatcher({"*": LimitSettings()}).limit("a.example") == LimitSettings()


@pytest.mark.parametrize(
    ("limits", "url", "unlimited"),
    [
        ({}, None, "*"),
        ({"x.example": limit(1)}, None, "*"),
        ({"*": LimitSettings()}, None, None),
        ({}, "https://x.example/?id={key}", "x.example"),
        ({"x.example": limit(1)}, "https://x.example/?id={key}", None),
        ({"*.example": limit(1)}, "https://x.example/?id={key}", None),
        ({"y.example": limit(1)}, "https://x.example/?id={key}", "x.example"),
    ],
)
def test_it_is_known_what_the_job_names_no_limit_for(
    limits: dict[str, LimitSettings], url: str | None, unlimited: str | None
) -> None:
    assert UpstreamMatcher(limits).without_limit(None if url is None else parse(url)) == unlimited


def test_a_crawl_over_millions_of_hosts_does_not_cache_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator.limits.matcher, "MAX_MATCHED_ORIGINS", 10)
    upstreams = UpstreamMatcher({"*.example": limit(1)})
    for number in range(100):
        assert upstreams.upstream_of(parse(f"https://{number}.test/a")) == f"{number}.test"
        assert upstreams.upstream_of(parse(f"https://{number}.example/a")) == "*.example"
    assert len(upstreams._rules_by_origin) <= 10
