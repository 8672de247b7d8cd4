"""The section `[publish]`: when readers see a run, and which files are written then."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, TypeAlias, cast, get_args

from coordinator.errors import UsageError
from crawler.job.fields import Section, number, text, value

Format: TypeAlias = Literal["parquet", "arrow", "jsonl.zst", "csv", "hf"]
_FORMATS: tuple[str, ...] = get_args(Format)
_EXPORT = f"({'|'.join(map(re.escape, _FORMATS))}):(.+)"


# The formatter would give each argument a line of its own, and the ten lines of a key would hide the next one.
# fmt: off
class PublishSettings(Section, frozen=True, kw_only=True):
    """When a complete run becomes the one that readers of the corpus see.

    A bound that a run does not keep holds it back: its command ends with exit code 4, and `shardcrawl publish RUN
    --force` publishes it all the same.
    """

    mode: Annotated[Literal["auto", "manual"], value(
        "By itself, or by `shardcrawl publish RUN`.",
        "manual", write='write "auto" or "manual"')] = "auto"
    max_failed: Annotated[float, number(
        "The share of keys that may have failed, stale ones too, or to which access was denied. `max_failed` of "
        "`[run]` only decides on the exit code 3 of a run that is published.",
        0.02, 0.0, 1.0, absent="no bound")] | None = None
    max_gone: Annotated[float, number(
        "The share of the keys with rows in the run before that may be gone, or no longer in the source.",
        0.05, 0.0, 1.0, absent="no bound")] | None = None
    min_keys: Annotated[float, number(
        "How many keys must have rows, as a share of those in the run before.",
        0.95, 0.0, 1.0,
        absent="at least one key when the run before had any, and in a first run in which keys failed; no bound in a "
        "job that has `[run] since` or a table that merges")] | None = None
    max_incomplete: Annotated[int, number(
        "How many lists of `[paginate]` may have broken off.",
        0, 0, 2**31, absent="no bound")] | None = None
    export: Annotated[str, text(
        "Write the tables of a run as files when it is published: a format of `shardcrawl export`, and a folder or a "
        "bucket. A relative path begins at the job file's folder. docs/export.md says what is there.",
        "parquet:out", f"^{_EXPORT}$", absent="no files")] | None = None
# fmt: on


def check_publish(publish: PublishSettings) -> None:
    """Raise UsageError when `export` is no format and place."""
    if publish.export is not None and not re.fullmatch(_EXPORT, publish.export):
        raise UsageError(
            f"job: [publish] export is {publish.export!r}; write a format ({', '.join(_FORMATS)}) and a "
            'folder or a bucket, like "parquet:out" or "hf:s3://bucket/folder"'
        )


def export_place(publish: PublishSettings, folder: str) -> tuple[Format, str] | None:
    """Format and place of the files that are written when a run is published, None without any.

    `folder` is where relative paths begin.
    """
    found = re.fullmatch(_EXPORT, publish.export or "")
    if found is None:
        return None
    return cast("Format", found[1]), found[2] if "://" in found[2] else str(Path(folder, found[2]))
