"""Pure: the metrics that docs/metrics.md explains, in the text format of Prometheus, version 0.0.4."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


class Metric(NamedTuple):
    """What a metric is: "gauge", "counter" or "histogram", and what it counts, in words."""

    kind: str
    words: str


METRICS: Mapping[str, Metric] = {
    f"shardcrawl_{name}": Metric(kind, words)
    for name, kind, words in (
        ("service_up", "gauge", "1 when the service responds."),
        ("redis_memory_bytes", "gauge", "Memory that Redis uses."),
        ("redis_memory_most_bytes", "gauge", "maxmemory of Redis."),
        ("run_state", "gauge", "1 for the state that the run has."),
        ("keys_total", "counter", "Keys with an outcome."),
        ("keys_expected", "gauge", "Keys of the source, as far as it is known."),
        ("keys_queued", "gauge", "Published keys without an outcome."),
        ("keys_queued_most", "gauge", "[run] high_water."),
        ("keys_deferred", "gauge", "Keys that wait for another attempt."),
        ("source_read", "gauge", "1 when the source was read to its end."),
        ("requests_total", "counter", "Requests sent."),
        ("received_bytes_total", "counter", "Bytes of bodies."),
        ("last_commit_seconds", "gauge", "How long ago keys got their outcome."),
        ("workers", "gauge", "Workers whose lease has not ended."),
        ("coordinator_leads", "gauge", "1 while a coordinator leads."),
        ("wanted_workers", "gauge", "How many workers would be of use."),
        ("waits_for_postgres", "gauge", "1 while a worker cannot commit."),
        ("limited_by", "gauge", "1 for what limits the run now."),
        ("upstream_requests_total", "counter", "Requests to the upstream that ended, by result."),
        ("upstream_rate_limit", "gauge", "Requests a second that are allowed now."),
        ("upstream_paused_seconds", "gauge", "What is left of its pause."),
        ("upstream_breaker_open", "gauge", "1 while its breaker is not closed."),
        ("upstream_keys_waiting", "gauge", "Keys that wait because it does not respond."),
        ("stage_seconds", "histogram", "How long each item took there."),
        ("stage_busy", "gauge", "How many of the stage were busy in the last seconds."),
        ("stage_size", "gauge", "How many of the stage can be busy."),
        ("stage_waiting", "gauge", "What waits for the stage."),
    )
}


class Exposition:
    """Collects samples of METRICS."""

    def __init__(self) -> None:
        self._lines: dict[str, list[str]] = {name: [] for name in METRICS}

    def add(self, name: str, value: float | None, **labels: str) -> None:
        """Add a sample; one whose value is None is left out."""
        if value is not None:
            self._lines[name].append(_line(name, value, labels))

    def add_histogram(
        self, name: str, bounds: Iterable[float], counts: Iterable[int], seconds: float, **labels: str
    ) -> None:
        """Add a histogram: `counts` has one number for each bucket, and one more for what is above them."""
        lines, total = self._lines[name], 0
        for bound, count in zip([*map(str, bounds), "+Inf"], counts, strict=True):
            total += count
            lines.append(_line(f"{name}_bucket", total, {**labels, "le": bound}))
        lines += [_line(f"{name}_sum", seconds, labels), _line(f"{name}_count", total, labels)]

    def render(self) -> bytes:
        """The text. A metric without samples is not in it."""
        parts: list[str] = []
        for name, lines in self._lines.items():
            if lines:
                metric = METRICS[name]
                parts += [f"# HELP {name} {metric.words}", f"# TYPE {name} {metric.kind}", *lines]
        return "".join(f"{part}\n" for part in parts).encode(errors="replace")


def _line(name: str, value: float, labels: Mapping[str, str]) -> str:
    shown = ",".join(f'{label}="{text.translate(_ESCAPES)}"' for label, text in labels.items())
    number = str(value) if isinstance(value, int) else repr(round(value, 6))
    return f"{name}{{{shown}}} {number}" if shown else f"{name} {number}"
