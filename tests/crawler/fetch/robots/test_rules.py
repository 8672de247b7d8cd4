"""What a robots.txt means: groups, paths, patterns, and bytes that are no robots.txt at all."""

from __future__ import annotations

import time
from urllib.parse import quote

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.url import parse
from crawler.fetch.robots.policy import OriginRules, Permission
from crawler.fetch.robots.rules import (
    MAX_ROBOTS_BYTES,
    RobotsRecord,
    failed_record,
    product_token,
    rules_for,
)
from crawler.job.models import RetrySettings


def permission(robots: bytes | str, path: str, token: str = "shardcrawl") -> Permission:
    body = robots if isinstance(robots, bytes) else robots.encode()
    return OriginRules("https://host", RobotsRecord(rules_for(token, body)), expires=1.0).permission(path, now=0.0)


DISALLOW_WORDS = (
    *("Dissallow", "Dissalow", "Disalow", "Diasllow", "Disallaw"),
    *("DISALLOW", "disallow", "Disallow ", "Disallows"),
)
USER_AGENT_WORDS = ("User Agent", "Useragent", "USER-AGENT", "user-agent ", "User-agents")
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
        ("User-agent: *shardcrawl\nDisallow: /\n", "/x", True),
        ("User-agent:\nDisallow: /\n", "/x", True),
        (ALL + "User-agent: shardcrawl\nDisallow:\n", "/x", True),
        (ALL + "User-agent: shardcrawl\n", "/x", True),
        ("User-agent: other\nUser-agent: shardcrawl\n\nDisallow: /\n", "/x", False),
        ("User-agent: shardcrawl\nSitemap: /s.xml\nUser-agent: other\nDisallow: /\n", "/x", False),
        ("Disallow: /\n", "/x", True),
        ("  user-AGENT : *  # all\r\n disallow :/x # this\r\n", "/x", False),
        ("User-agent: *\rDisallow: /x\r", "/x", False),
    ],
)
def test_the_groups_of_our_own_name_apply_or_else_those_of_everybody(robots: str, path: str, allowed: bool) -> None:
    assert permission(robots, path).allowed is allowed


def test_agents_that_are_named_again_and_again_cost_no_more_than_once() -> None:
    """10,000 of them before 20,000 rules took a minute of a core, and each origin of a hostile list could do it."""
    rules = "".join(f"Disallow: /{number}\n" for number in range(20_000))
    robots = "User-agent: *\nUser-agent: shardcrawl\n" * 5_000 + rules
    before = time.process_time()
    kept = rules_for("shardcrawl", robots.encode())
    assert time.process_time() - before < 5
    assert kept == rules_for("shardcrawl", f"User-agent: shardcrawl\n{rules}".encode())


@pytest.mark.parametrize(
    "line",
    [
        *("Crawl-delay: 2", "Sitemap: https://host/s.xml", "Host: host", "Request-rate: 1/5", "Clean-param: id /x"),
        *("Noindex: /z", "Some text: with a colon", "no field at all", "<html>", ":", "# a comment", "", "Disallow/z"),
        *("Allow us to crawl", "Disallow", "Disallow /z too"),  # without a colon, a rule has two words
    ],
)
def test_only_a_rule_ends_the_list_of_agents_of_a_group(line: str) -> None:
    """RFC 9309, 2.2.4: what is not of the standard must not interfere with what is."""
    robots = f"User-agent: *\n{line}\nUser-Agent: other\nDisallow: /search/\n{line}\nUser-agent: other\nDisallow: /o\n"
    assert [permission(robots, path).allowed for path in ("/search/", "/o", "/z")] == [False, True, True]


@pytest.mark.parametrize(
    ("robots", "delay"),
    [
        ("User-agent: *\nCrawl-delay: 2\nUser-agent: x\nDisallow: /search/\n", 2.0),
        ("User-agent: *\nUser-agent: x\nCrawl-delay: 2\n", 2.0),
        ("User-agent: *\nDisallow: /search/\nCrawl-delay: 2\n", 2.0),
        ("User-agent: x\nCrawl-delay: 9\nUser-agent: *\nDisallow: /search/\n", None),
        ("User-agent: *\nCrawl-delay: 2\nUser-agent: x\nCrawl-delay: 9\nDisallow: /search/\n", 2.0),
        ("User-agent: *\nSitemap: /s\nCrawl delay: 2\n", 2.0),
        ("User-agent: *\nCrawl-delay 2\n", 2.0),
        ("User-agent: *\nCrawl-delay: 2.5\n", 2.5),
        *((f"User-agent: *\nCrawl-delay: {other}\n", None) for other in ("1_0", "1e1", "inf", "nan", "-2", "2 s", "")),
    ],
)
def test_a_crawl_delay_is_for_the_agents_directly_before_it(robots: str, delay: float | None) -> None:
    assert permission(robots, "/yes").crawl_delay == delay


@pytest.mark.parametrize(
    "robots",
    [
        # The misspellings that Google's parser and protego take.
        *(f"User-agent: *\n{field}: /x" for field in DISALLOW_WORDS),
        *(f"{field}: *\nDisallow: /x" for field in USER_AGENT_WORDS),
        # The colon is missing.
        *("User-agent *\nDisallow: /x", "User agent *\nDisallow /x", "Useragent\t*\ndisalow\t/x"),
        "User-agent: *\nDisallow /x?at=12:30",
        # Further things that are seen.
        *("\ufeffUser-agent: *\nDisallow: /x", "User-agent: * everybody\nDisallow: /x", "user-agent:*\ndisallow:/x"),
        "User-agent: ShardCrawl (our favourite)\nDisallow: /x",
        *(f"User-agent: {ours}\nDisallow: /x" for ours in ("shardcrawl, other", "shardcrawl2", "SHARDCRAWL/2.0")),
        "User-agent: Mozilla/5.0 (compatible; shardcrawl/2.0; +https://example.org)\nDisallow: /x",
    ],
)
def test_what_is_meant_is_obeyed_though_it_is_written_badly(robots: str) -> None:
    assert [permission(robots, path).allowed for path in ("/x?at=12:30", "/y")] == [False, True]


@pytest.mark.parametrize("robots", ["foo: *\nbar: /x", "User-agent: *\nDisallowed/x", "User-agent: *\nBisallow: /x"])
def test_what_nobody_takes_for_a_rule_is_none(robots: str) -> None:
    assert permission(robots, "/x") == Permission(True)


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


@pytest.mark.parametrize("failures", [2**64 - 1, -1, True, "1"])
def test_failures_that_nobody_counted_are_none(failures: object) -> None:
    """With one more of 2^64 - 1 of them the record could not be packed, which ended each worker that asked."""
    with pytest.raises(ValueError, match="not what was found"):
        RobotsRecord.decode(msgpack.packb((None, "status 500", failures)))


@pytest.mark.parametrize(
    ("before", "fault", "retry", "seconds"),
    [
        # Nothing is allowed, and keys wait: the job's backoff, up to the last that one key waits for.
        (None, "connect: refused", RetrySettings(), [0.5, 1.0, 2.0, 4.0, 4.0]),
        (None, "status 503", RetrySettings(attempts=3, backoff=2.0), [2.0, 4.0, 4.0]),
        (None, "status 503", RetrySettings(attempts=9, max_delay=3.0), [0.5, 1.0, 2.0, 3.0, 3.0]),
        (None, "status 503", RetrySettings(attempts=1), [0.5, 0.5]),
        # It asks for fewer requests, which costs no attempt of this number.
        (None, "status 429", RetrySettings(), [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]),
        # Rules are there, and no key waits for newer ones.
        (RobotsRecord("allow: /"), "status 503", RetrySettings(), [60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 3600.0]),
    ],
)
def test_the_time_to_the_next_attempt_doubles_up_to_what_keys_can_wait_for(
    before: RobotsRecord | None, fault: str, retry: RetrySettings, seconds: list[float]
) -> None:
    record, found = failed_record(fault, before), []
    for _ in seconds:
        found.append(record.valid_seconds(retry, None))
        record = failed_record(fault, record)
    assert found == seconds
    assert failed_record("x", record).valid_seconds(retry, 21_600.0) == 21_600.0


PIECES = st.sampled_from(
    [b"user-agent: *", b"disallow: ", b"allow: /", b"crawl-delay: ", b"\r", b"\n", b"*", b"$", b"%", b"#"]
)


@given(st.binary() | st.lists(PIECES | st.binary(max_size=4)).map(b"".join), st.text())
def test_no_bytes_raise(robots: bytes, text: str) -> None:
    permission(robots, parse(f"https://host/{quote(text)}").path)
    product_token(text)


def test_an_origin_whose_rules_take_long_gets_few_requests() -> None:
    """100 URLs of one with 25,000 patterns, at 10/s, held up 2,400 of another host for a minute."""
    patterns = "".join(f"Disallow: /*a*a*a{number:x}$\n" for number in range(25_000))
    found = permission(f"User-agent: *\n{patterns}", f"/{'a' * 8000}z")
    assert found.allowed
    assert found.crawl_delay is not None
    assert 0.5 <= found.crawl_delay <= 60
    plain = "".join(f"Disallow: /{number}\n" for number in range(1_000))
    assert permission(f"User-agent: *\n{plain}", "/x").crawl_delay is None
