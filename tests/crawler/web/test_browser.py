"""The page in a real browser: what it shows, what can be done, and that text from outside stays text."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from coordinator.limits.upstream_health import read_upstream_health
from coordinator.queue.sharding import digest
from coordinator.redis.keys import RunKeys
from crawler.runs import cancel
from crawler.store.catalogue import open_catalogue
from crawler.web.guard import Access
from ops.browser import PHONE, Browser, Tab
from tests.crawler.web.browser import chromium
from tests.crawler.web.world import NEW, OLD, SCRIPT, SLOW, TOKEN, WAITING, World, a_dashboard, a_world, served
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

# What a screen reader and a keyboard need, as a list of what is missing.
FAULTS = """(() => {
  const faults = [];
  for (const one of document.querySelectorAll('button, a, input')) {
    if (one.offsetParent && !(one.innerText || one.ariaLabel || one.labels?.length)) faults.push(one.outerHTML);
  }
  for (const one of document.querySelectorAll('svg[role=img], meter')) {
    if (!one.getAttribute('aria-label')) faults.push(one.outerHTML);
  }
  for (const one of document.querySelectorAll('th')) if (!one.scope) faults.push(one.outerHTML);
  for (const one of document.querySelectorAll('table')) if (!one.caption) faults.push('table');
  if (document.querySelectorAll('main h1').length !== 1) faults.push('h1');
  if (document.querySelector('main').hasAttribute('aria-busy')) faults.push('busy');
  const width = document.documentElement.scrollWidth;
  if (width > innerWidth) faults.push(`wider than the window: ${width}`);
  return faults;
})()"""


@pytest.fixture
async def world(redis: Redis, database: str) -> AsyncIterator[World]:
    async with a_world(redis, database) as made:
        yield made


async def assert_sound(tab: Tab) -> None:
    assert await tab.run("window.hit") is None, "a script that was stored has run"
    assert await tab.run("document.querySelectorAll('main img, main script').length") == 0
    assert not tab.wrong
    for width in (1280, PHONE[0]):
        await tab.size(width, 900)
        assert await tab.run(FAULTS) == [], width
    await tab.size(1280, 900)


async def test_every_page_shows_what_it_should_and_text_stays_text(world: World, redis_url: str) -> None:
    async with chromium() as browser, a_dashboard(redis_url, world.database, Access()) as dashboard:
        tab = await browser.tab()
        async with served(dashboard) as port:
            await _visit_all(browser, tab, world, port)
        # The server is gone: that is said, and what was seen stays.
        await tab.run("(() => { const real = Date.now; Date.now = () => real() + 60_000; })()")
        await tab.shows("no news for 1 min")
        await tab.shows(NEW)


async def _visit_all(browser: Browser, tab: Tab, world: World, port: int) -> None:
    at = f"http://127.0.0.1:{port}"
    await tab.go(at, "readers see it")
    for words in (NEW, "41", "13 failed keys", "held back", "live", "only reads"):
        await tab.shows(words)
    await assert_sound(tab)
    await tab.press("Tab")
    assert await tab.run("document.activeElement.innerText") == "Skip to the content"

    await tab.click(NEW)
    for words in ("4 in flight", SLOW, "paused", "breaker open", "12 keys wait", "alpha: 2 workers", "status 503"):
        await tab.shows(words)
    assert SCRIPT in await tab.text()
    await tab.run("document.querySelector('summary').focus(); document.querySelector('summary').click(); 1")
    before = await tab.run("Number(document.body.dataset.news)")
    await eventually(lambda: _has_news(tab, before + 2), "more news")
    assert await tab.run("document.activeElement.tagName") == "SUMMARY", "news take the focus away"
    assert not await tab.run("document.querySelector('details').open"), "news open what the user has closed"
    await assert_sound(tab)

    await tab.go(f"{at}/runs/{NEW}/keys", "busy 1")
    await tab.shows("dns: \u2026 no such host")
    assert SCRIPT in await tab.text()
    await assert_sound(tab)
    await tab.fill("text", "no such")
    await tab.click("Search")
    await eventually(lambda: _is_searched(tab), "the search")
    await tab.shows("nowhere 2")
    assert "busy 1" not in await tab.text()
    await tab.click("nowhere 0")
    await tab.shows("10:00:00 dns")
    await assert_sound(tab)
    await tab.go(f"{at}/runs/{NEW}/keys/{digest(SCRIPT).hex()}", "Rows in titles")
    assert (await tab.text()).count(SCRIPT) >= 3
    await assert_sound(tab)
    await tab.go(f"{at}/diff?first={OLD}&second={WAITING}", "other content")
    await tab.click("failed")
    await tab.shows("Keys: failed")
    await assert_sound(tab)
    await tab.go(f"{at}/runs/nobody", "there is no run nobody")
    await tab.go(f"{at}/runs/nobody/keys", "This cannot be shown")

    await world.redis.flushall()
    await tab.go(at, "interrupted")
    rebound = await browser.tab()
    await rebound.go(f"http://rebound.example:{port}/", "is not known as")
    await tab.call("Page.bringToFront")


async def _is_searched(tab: Tab) -> bool:
    return "text=" in await tab.run("location.search")


async def _has_news(tab: Tab, count: int) -> bool:
    return bool(await tab.run("Number(document.body.dataset.news)") >= count)


async def test_what_can_be_done_is_done_with_the_token_alone(
    world: World, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cancel, "DRAIN_SECONDS", 0.0)
    monkeypatch.setattr(cancel, "QUIET_SECONDS", 0.0)
    async with (
        chromium() as browser,
        a_dashboard(redis_url, world.database, Access(token=TOKEN)) as dashboard,
        served(dashboard) as port,
    ):
        at, tab = f"http://127.0.0.1:{port}", await browser.tab()
        await tab.go(f"{at}/runs/{NEW}", SLOW)
        await tab.click("Limit", row=SLOW)
        await tab.fill("rate", "20/s")
        await tab.fill("token", "wrong")
        await tab.click("Change limit")
        await tab.shows("the token is missing or wrong")
        await tab.fill("token", TOKEN)
        await tab.click("Change limit")
        await tab.shows("is changed for every worker")
        assert any(one.override for one in await read_upstream_health(world.redis, RunKeys(NEW)))

        await tab.go(f"{at}/runs/{NEW}/keys?text=status+503", "Retry these")
        await tab.click("Retry these")
        await tab.shows("with \u201cstatus 503\u201d in their reason of things-2 go back")
        await tab.click("Retry")
        await tab.shows("No key has that.")

        await tab.go(f"{at}/runs/{WAITING}", "It is not published")
        await tab.click("Publish")
        await tab.run("document.querySelector('[name=force]').click()")
        await tab.click("Publish")
        await tab.shows("readers of corpus others see run others-1 now")
        await tab.go(f"{at}/runs/{NEW}", "whoever works on it begins it again")
        await tab.click("Cancel run")
        await tab.click("Cancel run")
        await tab.shows(f"run {NEW} is cancelled")
        async with open_catalogue(world.database) as catalogue:
            states = {run.name: (run.cancelled, run.published_at is not None) for run in await catalogue.all()}
        assert states == {OLD: (False, True), WAITING: (False, True), NEW: (True, False)}
        assert not [line for line in tab.wrong if "401" not in line]

        await tab.go(at, "cancelled")
