"""What a robots.txt means: groups, paths, patterns, and bytes that are no robots.txt at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crawler.fetch.robots.policy import OriginRules, Permission
from crawler.fetch.robots.rules import (
    MAX_ROBOTS_BYTES,
    RobotsRecord,
    failed_record,
    origin_and_path,
    product_token,
    rules_for,
)


def permission(robots: bytes | str, path: str, token: str = "shardcrawl") -> Permission:
    body = robots if isinstance(robots, bytes) else robots.encode()
    return OriginRules("https://host", RobotsRecord(rules_for(token, body)), expires=1.0).permission(path, now=0.0)


ALL, MINE = "User-agent: *\nDisallow: /\n", "User-agent: shardcrawl\nDisallow: /mine\n"


@pytest.mark.parametrize(
    ("robots", "path", "allowed"),
    [
        ("", "/x", True),
        (ALL, "/x", False),
        (ALL, "/robots.txt", True),
        (ALL + MINE, "/x", True),
        (MINE + ALL, "/mine", False),
        (MINE + ALL + "User-agent: SHARDCRAWL/2.0\nDisallow: /too\n", "/too", False),  # both groups of ours apply
        (MINE + ALL + "User-agent: shardcrawl\nDisallow: /too\n", "/mine", False),
        ("User-agent: shard\nDisallow: /\n", "/x", True),
        ("User-agent: crawl\nDisallow: /\n", "/x", True),
        ("User-agent: shardcrawler\nDisallow: /\n", "/x", True),
        ("User-agent:\nDisallow: /\n", "/x", True),
        (ALL + "User-agent: shardcrawl\nDisallow:\n", "/x", True),
        (ALL + "User-agent: shardcrawl\n", "/x", True),
        ("User-agent: other\nUser-agent: shardcrawl\n\nDisallow: /\n", "/x", False),
        ("User-agent: shardcrawl\nSitemap: /s.xml\nUser-agent: other\nDisallow: /\n", "/x", False),
        ("User-agent: *\nCrawl-delay: 1\nUser-agent: other\nDisallow: /\n", "/x", True),
        ("Disallow: /\n", "/x", True),
        ("  user-AGENT : *  # all\r\n disallow :/x # this\r\n", "/x", False),
        ("User-agent: *\rDisallow: /x\r", "/x", False),
    ],
)
def test_the_groups_of_our_own_name_apply_or_else_those_of_everybody(robots: str, path: str, allowed: bool) -> None:
    assert permission(robots, path).allowed is allowed


@pytest.mark.parametrize(
    ("rules", "path", "allowed"),
    [
        ("Disallow: /a", "/ab?c", False),
        ("Disallow: /a/", "/a", True),
        ("Disallow: /a", "/A", True),
        ("Disallow: /a\nAllow: /a/b", "/a/b", True),  # the longest match wins, whatever its place
        ("Allow: /a/b\nDisallow: /a", "/a/c", False),
        ("Disallow: /a\nAllow: /a", "/a", True),
        ("Disallow: /*.gif$", "/x/y.gif", False),
        ("Disallow: /*.gif$", "/x/y.gif?z", True),
        ("Disallow: /*.gif", "/x/y.gif?z", False),
        ("Disallow: *b", "/abc", False),
        ("Disallow: /a*/c*e", "/ab/b/cd/e", False),
        ("Disallow: /" + "*a" * 5000 + "$", "/" + "a" * 4999 + "b", True),  # and it takes no time
        ("Disallow: /$", "/", False),
        ("Disallow: /$", "/a", True),
        ("Disallow: /?", "/?", False),
        ("Disallow: /*?id=", "/a?id=1", False),
        ("Disallow: //b", "//b/c", False),
        ("Disallow: /caf\u00e9", "/caf%C3%A9", False),
        ("Disallow: /caf%c3%a9", "/caf\u00e9", False),
        ("Disallow: /a%2Fb", "/a/b", True),
        ("Disallow: /%61", "/a", False),
        ("Disallow: /a%2Ab", "/axb", True),
        ("Disallow: /a b", "/a%20b", False),
    ],
)
def test_a_path_is_matched_as_the_standard_says(rules: str, path: str, allowed: bool) -> None:
    response = permission(f"User-agent: *\n{rules}\n", path)
    assert response == (Permission(True) if allowed else Permission(False, "robots.txt of https://host disallows it"))


def test_bytes_in_any_encoding_match_the_path_that_has_them() -> None:
    robots = b"\xef\xbb\xbfUser-agent: *\nDisallow: /caf\xe9\nDisallow: /\x00\x85\x0c!\n\xff\xfe: \xff\nDisallow: /z"
    assert [permission(robots, path).allowed for path in ("/caf%E9", "/caf%C3%A9", "/%00%85%0C!", "/z")] == [
        False,
        True,
        False,
        False,
    ]


def test_bytes_beyond_half_a_mebibyte_and_the_line_that_is_cut_are_ignored() -> None:
    head = b"User-agent: *\nDisallow: /read\n"
    filler = b"# " + b"x" * (MAX_ROBOTS_BYTES - len(head) - len(b"\nDisallow: /") - 2)
    robots = head + filler + b"\nDisallow: /private\nDisallow: /unread\n"
    assert robots[:MAX_ROBOTS_BYTES].endswith(b"\nDisallow: /")
    assert [permission(robots, path).allowed for path in ("/read", "/private", "/unread")] == [False, True, True]


@pytest.mark.parametrize(
    ("written", "delay"),
    [("2.5", 2.5), ("0", None), ("-1", None), ("nan", None), ("inf", None), ("soon", None), ("86400", 60.0)],
)
def test_a_crawl_delay_is_kept_within_its_bounds(written: str, delay: float | None) -> None:
    robots = f"User-agent: *\nCrawl-delay: {written}\nDisallow: /no\n"
    assert permission(robots, "/yes") == Permission(True, crawl_delay=delay)
    assert permission(robots, "/no").crawl_delay == delay


@pytest.mark.parametrize(
    ("url", "origin", "path"),
    [
        ("https://Host.Example/A?b#c", "https://host.example", "/A?b"),
        ("HTTP://host:80", "http://host", "/"),
        ("https://host:80/", "https://host:80", "/"),
        ("https://host:443/", "https://host", "/"),
        ("http://[::1]:8080/x", "http://[::1]:8080", "/x"),
        ("https://user:pass@host/x", "https://host", "/x"),
        ("https://host?x=/../y", "https://host", "/?x=/../y"),
        # What engines make of these before they send them.
        ("https://host/a/../secret/./x", "https://host", "/secret/x"),
        ("https://host/a/%2E%2e/secret", "https://host", "/secret"),
        ("https://host/../../a/b/..", "https://host", "/a/"),
        ("https://host/a/.", "https://host", "/a/"),
        ("https://host/.well-known/x", "https://host", "/.well-known/x"),
        ("https:\\\\host\\a\\..\\secret?\\", "https://host", "/secret?\\"),
        (" https:/host/x", "https://host", "/x"),
        ("https://host/a/.\t./secret", "https://host", "/secret"),
        ("ftp://host/x", "", ""),
        ("no url", "", ""),
    ],
)
def test_a_url_has_the_origin_and_path_that_an_engine_sends(url: str, origin: str, path: str) -> None:
    assert origin_and_path(url) == (origin, path)


@pytest.mark.parametrize(
    ("user_agent", "token"),
    [
        ("shardcrawl (+https://pypi.org/project/shardcrawl/)", "shardcrawl"),
        ("TidyBot/2.1 (me@example.org)", "tidybot"),
        ("Mozilla/5.0 (compatible; TidyBot/2.1; +mailto:me@example.org)", "tidybot"),
        ("  ", ""),
    ],
)
def test_our_name_is_the_product_token(user_agent: str, token: str) -> None:
    assert product_token(user_agent) == token


def test_an_agent_without_a_name_gets_the_rules_of_everybody() -> None:
    assert not permission(ALL, "/x", token="").allowed
    assert permission("User-agent: \nDisallow: /\n", "/x", token="").allowed


@pytest.mark.parametrize(
    "record",
    [
        RobotsRecord(""),
        RobotsRecord("disallow: /%C3%A9"),
        failed_record("status 503", None),
        failed_record("x", RobotsRecord("allow: /")),
    ],
)
def test_a_record_is_the_same_after_packing(record: RobotsRecord) -> None:
    assert RobotsRecord.decode(record.encode()) == record


def test_the_time_to_the_next_attempt_doubles_up_to_an_hour() -> None:
    record, seconds = failed_record("status 503", None), []
    for _ in range(100):
        seconds.append(record.valid_seconds(None))
        record = failed_record("status 503", record)
    assert seconds[:7] == [60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 3600.0]
    assert max(seconds) == 3600.0
    assert record.valid_seconds(21_600.0) == 21_600.0
    assert failed_record("status 503", None).valid_seconds(5.0) == 60.0


PIECES = st.sampled_from(
    [b"user-agent: *", b"disallow: ", b"allow: /", b"crawl-delay: ", b"\r", b"\n", b"*", b"$", b"%", b"#"]
)


@given(st.binary() | st.lists(PIECES | st.binary(max_size=4)).map(b"".join), st.text())
def test_no_bytes_raise(robots: bytes, url: str) -> None:
    permission(robots, origin_and_path(f"https://host/{url}")[1])
    origin_and_path(url)
    product_token(url)
