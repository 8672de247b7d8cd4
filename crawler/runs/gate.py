"""Pure: whether a complete run may be published, by the bounds of `[publish]`."""

from __future__ import annotations

from dataclasses import dataclass

from crawler.job.fields import part_of
from crawler.job.sections.publish import PublishSettings
from crawler.store.rows.stored_run import FALLS_SHORT


@dataclass(frozen=True, slots=True)
class Facts:
    """A run in numbers: its `keys`, those that `failed` (stale ones too) or were `denied`, lists that are `incomplete`.

    The corpus' current run had rows for `keys_before`, None without such a run. Of these `gone_since` are gone or not
    in this run, which has rows for `keys_with_rows`. A run that asks only for what is new `may_be_empty`.
    """

    keys: int
    failed: int = 0
    denied: int = 0
    incomplete: int = 0
    keys_before: int | None = None
    gone_since: int = 0
    keys_with_rows: int = 0
    may_be_empty: bool = False


def shortfall(bounds: PublishSettings, facts: Facts) -> str:
    """Which bounds the run does not keep, in one line for people; "" when it keeps all of them."""
    found = []
    lost = facts.failed + facts.denied
    if bounds.max_failed is not None and lost > part_of(bounds.max_failed, facts.keys):
        denied = f", {facts.denied:,} of them denied" if facts.denied else ""
        found.append(
            f"max_failed is {_percent(bounds.max_failed)}, and {lost:,} of {facts.keys:,} keys failed{denied} "
            f"({_percent(lost / facts.keys)})"
        )
    if before := facts.keys_before:
        if bounds.max_gone is not None and facts.gone_since > part_of(bounds.max_gone, before):
            found.append(
                f"max_gone is {_percent(bounds.max_gone)}, and {facts.gone_since:,} of {before:,} keys with rows are "
                f"gone or no longer in the source ({_percent(facts.gone_since / before)})"
            )
        if bounds.min_keys is not None and facts.keys_with_rows < part_of(bounds.min_keys, before):
            found.append(
                f"min_keys is {_percent(bounds.min_keys)}, and {facts.keys_with_rows:,} keys have rows, after "
                f"{before:,} in the current run ({_percent(facts.keys_with_rows / before)})"
            )
    if bounds.min_keys is None and not facts.keys_with_rows and not facts.may_be_empty:
        if before:
            found.append(f"min_keys is not given, and no key has rows, after {before:,} in the current run")
        elif lost and bounds != PublishSettings():  # without [publish] it is a crawl, whose log people want to see
            found.append(
                f"min_keys is not given, and no key has rows: {lost:,} of {facts.keys:,} failed or were denied"
            )
    if bounds.max_incomplete is not None and facts.incomplete > bounds.max_incomplete:
        found.append(f"max_incomplete is {bounds.max_incomplete:,}, and {facts.incomplete:,} lists broke off")
    return f"{FALLS_SHORT}{'; '.join(found)}" if found else ""


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"
