"""A transform in a child process: the batch that goes there, the handler that runs there, and what comes back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import NamedTuple

from coordinator.errors import first_line
from coordinator.user_code import TimeLimit
from crawler.job.job import Job
from crawler.parse.code import check_parser
from crawler.pool.protocol import pickled, unpickled
from crawler.transform.function import Made, Record, Transform


class TransformSetup(NamedTuple):
    """Which of the job's transforms the child imports. `files` are the digests of the files of the run."""

    job: Job
    number: int
    files: Mapping[str, str]


class BatchTask(NamedTuple):
    """The keys of a batch, each with a pickle of its records: one that cannot be read fails its key and no other."""

    keys: Sequence[str]
    records: Sequence[bytes]


class BatchResult(NamedTuple):
    """What became of the keys, in their order: a pickle of the records, or why the key fails.

    `error`, if there is one, is why the whole batch failed; then `made` is empty. The function took `seconds`.
    """

    made: Sequence[bytes | str]
    error: str | None
    seconds: float


def transform_handler(setup: TransformSetup) -> Callable[[BatchTask], BatchResult]:
    """The function that takes batches through the transform in the child.

    Raises UsageError when it cannot be imported or set up, or is another one than the run's by now.
    """
    check_parser(setup.job, setup.files)
    transform = Transform(setup.job, setup.number)
    transform.set_up()
    limit = TimeLimit(setup.job.transform[setup.number].seconds, " ([transform] seconds)")
    is_fresh = True

    def handle(task: BatchTask) -> BatchResult:
        nonlocal is_fresh
        was_fresh, is_fresh = is_fresh, is_fresh and not task.keys
        began = perf_counter()
        try:
            made = _apply(transform, limit, task)
        except MemoryError as error:
            if not was_fresh:  # perhaps earlier batches have left too little: the batch begins anew in another process
                raise
            return BatchResult((), transform.reason(error), perf_counter() - began)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - the user's code
            return BatchResult((), transform.reason(error), perf_counter() - began)
        return BatchResult(made, None, perf_counter() - began)

    return handle


def _apply(transform: Transform, limit: TimeLimit, task: BatchTask) -> list[bytes | str]:
    given: dict[str, Sequence[Record]] = {}
    failed: dict[str, Made] = {}
    for key, content in zip(task.keys, task.records, strict=True):
        try:
            given[key] = unpickled(content)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - unpickling runs the user's code, which may raise anything
            failed[key] = unreadable(error)
    with limit:
        made = {**(transform.apply(given) if given else {}), **failed}
        return [_pickled(made[key]) for key in task.keys]


def _pickled(made: Made) -> bytes | str:
    if isinstance(made, str):
        return made
    try:
        return pickled(made)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - pickling runs the user's code, which may raise anything
        return unreadable(error)


def unreadable(error: Exception) -> str:
    """The reason of a key with a record that cannot be pickled, or not be read from its pickle."""
    return (
        f"transform: a record that cannot go from one process to another: {type(error).__name__}: {first_line(error)}"
    )
