"""Draws the figures of `compare`, `latency`, `growth` and `pipeline`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ops.bench.contenders import AIOHTTP, BY_DEFAULT, PROTOTYPE, SHARDCRAWL
from ops.bench.step import ALONE
from ops.bench.trials import IDLE_LOAD, PARTS, Figures, ratio

INK, FAINT, GRID = "#1f2933", "#7b8794", "#e4e7eb"
OURS, LIMIT, RIVAL = "#0b7285", "#a5d8dd", "#c5ccd3"
COLOURS = {SHARDCRAWL.name: OURS, BY_DEFAULT.name: OURS, PROTOTYPE.name: LIMIT, ALONE: LIMIT}
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "text.color": INK,
    "axes.labelcolor": FAINT,
    "xtick.color": FAINT,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.edgecolor": GRID,
}


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw the figures of `compare` into a file; parts that were not measured are left out."""
    lines = [Figures(**line) for line in results["lines"]]
    measured = [part for part in PARTS if any(line.part == part for line in lines)]
    small = [part for part in measured if part != "rivals"]
    with mpl.rc_context(cast("Any", STYLE)):
        tall = ("rivals" in measured) + bool(small)
        figure = Figure(figsize=(11, 0.6 + 4.3 * tall), dpi=150, facecolor="white")
        rows = figure.subfigures(tall, 1, squeeze=False, hspace=0.02)[:, 0]
        if "rivals" in measured:
            speed, cpu = rows[0].subplots(1, 2, width_ratios=(2.1, 1))
            rows[0].subplots_adjust(left=0.21, right=0.97, top=0.74, bottom=0.04, wspace=0.12)
            _rivals(speed, cpu, [line for line in lines if line.part == "rivals"])
            _title(rows[0], results, "Pages fetched and stored per second", "4 KB JSON into jsonb")
        if small:
            axes = rows[-1].subplots(1, len(small), squeeze=False)[0]
            rows[-1].subplots_adjust(left=0.06, right=0.97, top=0.84, bottom=0.12, wspace=0.22)
            for part, axis in zip(small, axes, strict=True):
                PANELS[part](axis, lines)
        figure.savefig(path)


def _title(figure: Any, results: dict[str, Any], title: str, what: str) -> None:
    machine = results["machine"]
    figure.text(0.03, 0.94, title, fontsize=16, fontweight="bold", va="top")
    where = f"{machine['cores']} cores with nginx, Redis and Postgres on them"
    if machine["load_before"] >= IDLE_LOAD:
        where += f", and other work (load {machine['load_before']:.0f})"
    rounds = f"medians of {results['rounds']} alternating rounds" if results["rounds"] > 1 else "one round"
    how = f"{what}, {rounds}, {where}"
    figure.text(0.03, 0.865, how, fontsize=10.5, color=FAINT, va="top")


def _rivals(speed: Axes, cpu: Axes, lines: Sequence[Figures]) -> None:
    ordered = sorted(lines, key=lambda line: (line.contender == PROTOTYPE.name, line.rate))
    names = [line.contender for line in ordered]
    colours = [COLOURS.get(name, RIVAL) for name in names]
    _speeds(speed, ordered, names, "   the limit: the same path without any promise")
    _bars(cpu, ["" for _ in names], [line.cpu for line in ordered], colours)
    for place, line in enumerate(ordered):
        cpu.text(line.cpu + cpu.get_xlim()[1] * 0.02, place, f"{line.cpu:.2f}", va="center", color=INK)
    speed.set_title("keys/s", loc="left", fontsize=10.5, color=FAINT)
    cpu.set_title("CPU seconds per 1,000 keys", loc="left", fontsize=10.5, color=FAINT)


def _speeds(axis: Axes, lines: Sequence[Figures], names: Sequence[str], limit: str) -> None:
    """Bars with the rate of each, and how many times as fast ours is; the last one is the limit, and says so."""
    ours = next(line for line in lines if line.contender == SHARDCRAWL.name)
    _bars(axis, names, [line.rate for line in lines], [COLOURS.get(line.contender, RIVAL) for line in lines])
    for place, line in enumerate(lines):
        label = f"{line.rate:,.0f}"
        inside = line is lines[-1]
        if inside:
            label += limit
        elif line.contender not in COLOURS:
            label += f"   ours is {_times(ratio(ours, line))}"
        axis.text(
            line.rate * (0.0 if inside else 1.0) + axis.get_xlim()[1] * 0.012,
            place,
            label,
            va="center",
            color=INK,
            fontweight="bold" if line is ours else "normal",
        )
    for name, line in zip(axis.get_yticklabels(), lines, strict=True):
        name.set_fontweight("bold" if line is ours else "normal")


def _bars(axis: Axes, names: Sequence[str], values: Sequence[float], colours: Sequence[str]) -> None:
    axis.barh(range(len(values)), values, color=colours, height=0.68)
    axis.set_yticks(range(len(values)), names)
    axis.tick_params(length=0)
    axis.set_xticks([])
    axis.spines["bottom"].set_visible(False)
    axis.set_xlim(0, max(values) * 1.18)


def _times(ratio: float) -> str:
    return f"{ratio:.1f} x as fast" if ratio < 10 else f"{ratio:.0f} x as fast"


def _grouped(axis: Axes, lines: Sequence[Figures], part: str, first: str, title: str) -> None:
    """Columns for shardcrawl, the prototype and aiohttp in each circumstance; `first` is that of the part `rivals`."""
    groups = [first, *dict.fromkeys(line.circumstance for line in lines if line.part == part)]
    if part == "bodies" and len(groups) == 3:
        groups = [groups[1], groups[0], groups[2]]
    names = (SHARDCRAWL.name, PROTOTYPE.name, AIOHTTP.name)
    for offset, name in enumerate(names):
        for place, group in enumerate(groups):
            rate = _rate(lines, part, group, first, name)
            if rate is None:
                continue
            at = place + (offset - 1) * 0.28
            axis.bar(at, rate, width=0.25, color=COLOURS.get(name, RIVAL), label=name if not place else None)
            axis.text(at, rate, f" {_short(rate)}", ha="center", va="bottom", fontsize=8.5, color=INK)
    axis.set_xticks(range(len(groups)), groups)
    axis.legend(frameon=False, fontsize=8.5, loc="upper right", handlelength=1.0, handleheight=0.9)
    _column_style(axis, title)
    axis.margins(y=0.42)  # the legend stands above the highest


def _rate(lines: Sequence[Figures], part: str, group: str, first: str, name: str) -> float | None:
    wanted = ("rivals", None) if group == first else (part, group)
    for line in lines:
        if line.part == wanted[0] and wanted[1] in (None, line.circumstance) and line.contender == name:
            return line.rate
    return None


def _workers(axis: Axes, lines: Sequence[Figures]) -> None:
    rates = {int(line.circumstance.split()[0]): line.rate for line in lines if line.part == "workers"}
    both = _rate(lines, "rivals", "", "", SHARDCRAWL.name)
    rates |= {} if both is None else {2: both}
    counts = sorted(rates)
    for place, count in enumerate(counts):
        axis.bar(place, rates[count], width=0.5, color=OURS)
        axis.text(place, rates[count], _short(rates[count]), ha="center", va="bottom", fontsize=8.5, color=INK)
    axis.set_xticks(range(len(counts)), [str(count) for count in counts])
    _column_style(axis, "keys/s by workers")


def _column_style(axis: Axes, title: str) -> None:
    axis.set_title(title, loc="left", fontsize=10.5, color=FAINT, pad=14)
    axis.tick_params(length=0)
    axis.tick_params(axis="x", labelcolor=INK, labelsize=9)
    axis.set_yticks([])
    axis.margins(y=0.22)


def _short(rate: float) -> str:
    return f"{rate / 1000:.1f}k" if rate >= 1000 else f"{rate:.0f}"


PANELS: dict[str, Callable[[Axes, Sequence[Figures]], None]] = {
    "bodies": lambda axis, lines: _grouped(axis, lines, "bodies", "4 KB", "keys/s by size of the body"),
    "transports": lambda axis, lines: _grouped(axis, lines, "transports", "HTTP/1.1", "keys/s by transport"),
    "workers": _workers,
}


def draw_latency(results: dict[str, Any], path: Path) -> None:
    """Draw the figures of `latency`: columns of the reached rate in front of the possible rate."""
    lines = results["lines"]
    with mpl.rc_context(cast("Any", STYLE)):
        figure = Figure(figsize=(11, 4.0), dpi=150, facecolor="white")
        axis = figure.add_axes((0.03, 0.13, 0.94, 0.62))
        for place, line in enumerate(lines):
            axis.bar(place, line["possible"], width=0.62, color=LIMIT, label=None if place else "possible")
            axis.bar(place, line["rate"], width=0.4, color=OURS, label=None if place else "reached")
            label = f"{line['rate']:,.0f}\n{line['rate'] / line['possible']:.1%}"
            axis.text(place, max(line["possible"], line["rate"]), label, ha="center", va="bottom", fontsize=9.5)
        each = [
            f"{line['in_flight']:,} in flight\n{line['workers']} x {line['in_flight'] // line['workers']:,}"
            for line in lines
        ]
        axis.set_xticks(range(len(lines)), each)
        _column_style(axis, "")
        axis.legend(frameon=False, fontsize=9.5, loc="upper left")
        figure.text(0.03, 0.95, "An upstream that takes 300 ms", fontsize=16, fontweight="bold", va="top")
        how = f"keys/s in the middle of a run, and the share of in flight / {results['delay']} s"
        figure.text(0.03, 0.86, how, fontsize=10.5, color=FAINT, va="top")
        figure.savefig(path)


def draw_pipeline(results: dict[str, Any], path: Path) -> None:
    """Draw the figures of `pipeline`: all contenders on all cores, and ours with more and more processes."""
    lines, cores = [Figures(**line) for line in results["lines"]], results["cores"]
    limits = {line.circumstance: line for line in lines if line.contender == ALONE}
    grown = [line for line in lines if line.contender == SHARDCRAWL.name]
    ranked = sorted(
        (line for line in lines if line.contender != ALONE and (line not in grown or line.circumstance == cores)),
        key=lambda line: line.rate,
    )
    names = [f"{line.contender}, {_processes(line.circumstance)}" for line in (*ranked, limits[cores])]
    with mpl.rc_context(cast("Any", STYLE)):
        figure = Figure(figsize=(11, 4.6), dpi=150, facecolor="white")
        speed, growth = figure.subplots(1, 2, width_ratios=(2.1, 1))
        figure.subplots_adjust(left=0.26, right=0.97, top=0.72, bottom=0.08, wspace=0.12)
        _speeds(speed, [*ranked, limits[cores]], names, "   the limit: nothing but the step")
        speed.set_xlim(right=1.2 * speed.get_xlim()[1])  # room for the words beside the longest bar
        speed.set_title("records/s", loc="left", fontsize=10.5, color=FAINT, pad=14)
        for place, line in enumerate(grown):
            limit = limits[line.circumstance]
            growth.bar(place, limit.rate, width=0.66, color=LIMIT, label=None if place else limit.contender)
            growth.bar(
                place, line.rate, width=0.44, color=OURS, label=None if place else f"{line.contender}, its share"
            )
            label = f"{line.rate:,.0f}\n{ratio(line, limit):.0%}"
            growth.text(place, max(line.rate, limit.rate), label, ha="center", va="bottom", fontsize=9.5)
        growth.set_xticks(range(len(grown)), [line.circumstance for line in grown])
        _column_style(growth, "records/s by processes")
        growth.legend(frameon=False, fontsize=8.5, loc="upper left", handlelength=1.0, handleheight=0.9)
        growth.margins(y=0.5)  # the legend stands above the first
        step, latency = (f"{1000 * results[name]:.0f} ms" for name in ("cpu", "latency"))
        _title(figure, results, f"Fetch, parse, a step of {step} CPU, write", f"an upstream that takes {latency}")
        figure.savefig(path)


def _processes(count: str) -> str:
    return f"{count} process" if count == "1" else f"{count} processes"


def draw_growth(results: dict[str, Any], path: Path) -> None:
    """Draw the figures of `growth` over the keys of each run: speed, memory of processes, memory of Redis."""
    panels: tuple[tuple[str, Callable[[Axes, dict[str, Any]], None]], ...] = (
        ("keys/s", _speed_over_keys),
        ("MB of each process", _resident_over_keys),
        ("MB of Redis", _redis_over_keys),
    )
    runs = results["runs"]
    with mpl.rc_context(cast("Any", STYLE)):
        figure = Figure(figsize=(11, 0.9 + 2.6 * len(runs)), dpi=150, facecolor="white")
        tall = 0.9 / (0.9 + 2.6 * len(runs))
        figure.text(0.03, 1 - 0.25 * tall, "From the first key to the last", fontsize=16, fontweight="bold", va="top")
        axes = figure.subplots(len(runs), 3, squeeze=False)
        figure.subplots_adjust(left=0.07, right=0.97, top=1 - 1.2 * tall, bottom=0.09, wspace=0.25, hspace=0.5)
        for row, run in zip(axes, runs, strict=True):
            for (title, panel), axis in zip(panels, row, strict=True):
                panel(axis, run)
                axis.set_title(f"{run['keys']:,} keys: {title}", loc="left", fontsize=10.5, color=FAINT)
                axis.set_xlim(0, run["keys"])
                axis.set_ylim(0, 1.15 * axis.get_ylim()[1])
                axis.set_xticks([run["keys"] * part / 4 for part in range(5)])
                axis.xaxis.set_major_formatter(lambda count, _: f"{count / 1e6:.3g} M" if count else "0")
                axis.grid(axis="y", color=GRID)
                axis.tick_params(length=0)
        figure.savefig(path)


def _speed_over_keys(axis: Axes, run: dict[str, Any]) -> None:
    steady = [sample for sample in run["samples"] if 0 < sample["done"] < run["keys"]]
    pairs = list(pairwise(steady))
    speeds = [(after["done"] - before["done"]) / (after["at"] - before["at"]) for before, after in pairs]
    axis.plot([after["done"] for _, after in pairs], speeds, color=OURS)


def _resident_over_keys(axis: Axes, run: dict[str, Any]) -> None:
    for who in sorted({who for sample in run["samples"] for who in sample["resident"]}):
        some = [(sample["done"], sample["resident"][who]) for sample in run["samples"] if who in sample["resident"]]
        axis.plot(*zip(*some, strict=True), color=FAINT if who == "coordinator" else OURS, label=who)
    axis.legend(frameon=False, fontsize=8.5, loc="lower right")


def _redis_over_keys(axis: Axes, run: dict[str, Any]) -> None:
    counts = [sample["done"] for sample in run["samples"]]
    axis.plot(counts, [sample["redis"] / 1e6 for sample in run["samples"]], color=OURS)
    axis.plot([0, run["keys"]], [run["empty"] / 1e6, run["left"] / 1e6], color=LIMIT, label="what is done")
    axis.legend(frameon=False, fontsize=8.5, loc="lower right")
