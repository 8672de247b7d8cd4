"""What `check` says of a job: each setting, its value, and where the value comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeAlias

from coordinator.limits.matcher import UpstreamMatcher
from coordinator.model import KeyContext
from coordinator.settings import ANY_UPSTREAM, POLITE, LimitSettings
from coordinator.source import Chunk, showable
from coordinator.url import Target
from crawler.corpus import polite_upstream
from crawler.fetch.network.address import Guard, literal
from crawler.fetch.network.resolve import refused_detail
from crawler.fetch.robots.rules import product_token
from crawler.fetch.template import Template
from crawler.job.job import Job
from crawler.job.request.placeholders import SECRET
from crawler.job.request_checks import credential_origins, credentials_in
from crawler.job.sections.run import RunSettings
from crawler.job.sections.transform import TransformSettings

SHOWN_KEYS = 3
PAGES_WORDS = "the pages that the sitemap names"
# A row of what `check` prints: the setting, its value, and where the value comes from.
Checked: TypeAlias = Sequence[Any]


def checked_job(job: Job, first: Chunk, total: int | None, given: Mapping[str, str]) -> list[Checked]:
    """What there is to say of a job without servers; `first` are its first keys, `total` is about how many it has.

    `given` says of each option that was given whether it came from the command line or the environment.
    """
    return [
        *_run_settings(job, total, given),
        *_first_keys(first),
        *_refused(first),
        *_private(job, first),
        *_limits(job, given, first.keys),
        *_credentials(job, first.keys),
        *_unmatched_limits(job, first),
        *_run_warnings(job.run),
    ]


def _first_keys(first: Chunk) -> list[Checked]:
    """The first keys that carry fields, with these."""
    shown = [key for key in dict.fromkeys(first.keys) if key in first.fields][:SHOWN_KEYS]
    fields = [", ".join(f"{name} = {showable(text)[:40]}" for name, text in first.fields[key].items()) for key in shown]
    return [("key", f"{showable(key)[:60]}: {text}", "source") for key, text in zip(shown, fields, strict=True)]


def _run_settings(job: Job, total: int | None, given: Mapping[str, str]) -> list[Checked]:
    run, request = job.run, job.request

    def origin(section: str, key: str) -> str:
        return _origin(job, given, section, key, option=key)

    return [
        ("run", run.name or "called after the corpus and the day", origin("run", "name")),
        ("corpus", job.corpus, "job file" if run.corpus else "run"),
        ("source", job.source.name, "job file"),
        ("keys", _keys_words(total, request.keys_per_request) if not job.source.sitemap else PAGES_WORDS, "source"),
        ("request", request.url or "each key is a URL", origin("request", "url")),
        *([("since", f"at first {run.since}", origin("run", "since"))] if run.since else []),
        *_versions(job, origin),
        ("engine", f"{request.engine}{', HTTP/2' if request.http2 else ''}", origin("request", "engine")),
        ("user agent", request.user_agent, origin("request", "user_agent")),
        _robots(job),
        ("workers", run.workers or "one a core", origin("run", "workers")),
        ("concurrency", f"{run.concurrency} a worker", origin("run", "concurrency")),
        ("grace", f"{run.grace:g} s", origin("run", "grace")),
        ("batch rows", job.store.batch_rows, origin("store", "batch_rows")),
        ("attempts", job.retry.attempts, origin("retry", "attempts")),
        ("parser", job.parse.python or _parser_words(job), origin("parse", "python")),
        *(("transform", _transform_words(one), "job file") for one in job.transform),
        (
            "tables",
            ", ".join(table.name for table in job.tables) or "pages only",
            "job file" if job.tables else "default",
        ),
    ]


def _versions(job: Job, origin: Callable[[str, str], str]) -> list[Checked]:
    """What there is to say of the run as a version of its corpus."""
    run, publish = job.run, job.publish
    rows: list[Checked] = []
    if run.refresh:
        rows += [
            ("refresh", "only what has changed is asked for", origin("run", "refresh")),
            ("max age", run.max_age or "every page is asked for", origin("run", "max_age")),
            ("on failure", f"{run.on_failure} the rows", origin("run", "on_failure")),
        ]
    bounds = {name: getattr(publish, name) for name in ("max_failed", "max_gone", "min_keys")}
    words = [f"{name} {100 * share:g} %" for name, share in bounds.items() if share is not None]
    words += [f"max_incomplete {publish.max_incomplete}"] if publish.max_incomplete is not None else []
    when = "when it is complete" if publish.mode == "auto" else "by `shardcrawl publish`"
    rows.append(("published", ", ".join([when, *words]), "job file" if "publish" in job.document else "default"))
    if publish.export:
        rows.append(("export", publish.export, "job file"))
    if ways := [way for way in ("command", "webhook") if getattr(job.notify, way)]:
        rows.append(("notify", f"by {' and '.join(ways)}", "job file"))
    return rows


def _run_warnings(run: RunSettings) -> list[Checked]:
    """Settings of `[run]` that have no effect, or another one than they seem to have."""
    warnings = []
    if run.refresh and run.name:
        warnings.append(f"there is one run {run.name}: once it is complete nothing is refreshed; leave [run] name out")
    if run.max_age is not None and not run.refresh:
        warnings.append("[run] max_age is for a refresh: add refresh = true, or give --refresh")
    if run.since is not None:
        try:
            datetime.fromisoformat(run.since)
        except ValueError:
            moment = "the runs after the first have a moment like 2026-01-01T00:00:00Z there"
            warnings.append(f"[run] since is {run.since!r}, and {moment}: does the upstream take both?")
    return [("warning", words, "job file") for words in warnings]


def _parser_words(job: Job) -> str:
    """What parses where no function of the user's does."""
    return "selectors" if job.has_parser else "none: whole body"


def _transform_words(settings: TransformSettings) -> str:
    processes = "one process" if settings.processes == 1 else f"{settings.processes} processes"
    return f"{settings.python} of {settings.table}, {processes} a worker"


def _keys_words(total: int | None, keys_per_request: int) -> str:
    """About how many keys there are, and with several keys a request how many requests they take."""
    if total is None:
        return "unknown until read" + (f", up to {keys_per_request} a request" if keys_per_request > 1 else "")
    if keys_per_request == 1:
        return f"about {total:,}"
    requests = -(-total // keys_per_request)
    return f"about {total:,} keys in about {requests:,} requests of up to {keys_per_request} keys"


def _robots(job: Job) -> Checked:
    """Whether robots.txt is obeyed, and why."""
    request = job.request
    words = f"obeyed, as {product_token(request.user_agent) or '*'}" if request.obeys_robots else "not asked for"
    reason = "keys are URLs" if request.url is None else "an API by its template"
    return "robots.txt", words, f"default: {reason}" if request.robots is None else "job file"


def _refused(first: Chunk) -> list[Checked]:
    """How many of the first keys would be refused, and why the first of them."""
    if not first.refused:
        return []
    bad = first.refused[0]
    words = f"{len(first.refused):,} of the first {len(first.keys) + len(first.refused):,}"
    return [("refused", f"{words}: {bad.place} ({bad.key[:60]}) {bad.reason}", "source")]


def _targets(template: Template, first: Chunk) -> list[Target]:
    """Where requests go, as far as the first keys tell."""
    if template.sample is not None:
        return [template.sample]
    return [template.target([key], KeyContext(fields=first.fields.get(key, {}))) for key in first.keys]


def _private(job: Job, first: Chunk) -> list[Checked]:
    """A warning for the first address, written as one, that requests are refused for."""
    allows = Guard(job.request.allow_private)
    for target in _targets(Template(job.request), first):
        host = target.origin.upstream_host
        if (address := literal(host)) is not None and not allows(address):
            return [("warning", refused_detail(host, address), "job file")]
    return []


def _credentials(job: Job, first_keys: Sequence[str]) -> list[Checked]:
    """Where each of the job's credentials goes, and how many of the first keys are asked for without them."""
    request, template = job.request, Template(job.request)
    rows: list[Checked] = []
    origins = credential_origins(request)
    names = ", ".join(credentials_in(request))
    if names and template.sample is not None:
        rows.append(("credentials", f"{names}: to {template.sample.origin.text}", "job file"))
    elif names and origins is not None:
        others = sum(template.target([key]).origin.text not in origins for key in first_keys)
        words = f"; {others:,} of the first {len(first_keys):,} keys go elsewhere, without" if others else ""
        rows.append(("credentials", f"{names}: to {', '.join(sorted(origins))}{words}", "job file"))
    if request.client_cert is not None:
        rows.append(("client certificate", "shown to every server that asks for one", "job file"))
    if request.proxy is not None and SECRET.search(request.proxy):
        rows.append(("proxy's secret", "to the proxy", "job file"))
    return rows


def _limits(job: Job, given: Mapping[str, str], first_keys: Sequence[str]) -> list[Checked]:
    # The document may spell a name in another way.
    origin = _origin(job, given, "limits", ANY_UPSTREAM, option="rate") if "rate" in given else "job file"
    rows: list[Checked] = [(f"limit of {name}", _limit_words(limit), origin) for name, limit in job.limits.items()]
    if unlimited := polite_upstream(job, lambda: first_keys):
        whose = "each host" if unlimited == ANY_UPSTREAM else unlimited
        rows.append((f"limit of {whose}", _limit_words(POLITE), "default: polite"))
    return rows


def _unmatched_limits(job: Job, first: Chunk) -> list[Checked]:
    """A warning for each limit that no request meets, as far as the first keys tell; redirects may lead there."""
    if job.source.sitemap:
        return []  # the pages that they name may meet the limits
    template, matcher = Template(job.request), UpstreamMatcher(job.limits)
    targets = _targets(template, first)
    if not targets:
        return []
    who = "no key meets" if first.exhausted else f"none of the first {len(targets):,} keys meets"
    if template.sample is not None:
        who = "the template does not meet"
    for target in targets:
        matcher.upstream_of(target)
    return [
        ("warning", f'{who} [limits."{name}"]', "job file")
        for name in job.limits
        if name != ANY_UPSTREAM and name not in matcher.matched
    ]


def _limit_words(limit: LimitSettings) -> str:
    return limit.rate_text + ("" if limit.concurrency is None else f", {limit.concurrency} at once")


def _origin(job: Job, given: Mapping[str, str], section: str, key: str, *, option: str) -> str:
    """Where a setting comes from: an option, the option's environment variable, the job file, or the default.

    `given` says of each option that was given whether it came from the command line or the environment.
    """
    if option in given:
        return f"--{option.replace('_', '-')}" if given[option] == "commandline" else "environment"
    return "job file" if key in (job.document.get(section) or {}) else "default"
