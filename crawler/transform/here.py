"""The transforms of a job in this process, one key after another: for the test kit, `fetch` and `check --try`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from coordinator.user_code import TimeLimit
from crawler.job.job import Job
from crawler.model import Page
from crawler.transform.batching import take_records
from crawler.transform.function import Made, Record, Transform


def load_transforms(job: Job) -> list[Transform]:
    """Import the job's transforms. Raises UsageError."""
    return [Transform(job, number) for number in range(len(job.transform))]


def transform_here(job: Job, pages: Sequence[Page], on_error: Callable[[BaseException], None]) -> None:
    """Do to the records of pages what the stage of a worker does. Raises UsageError for a function without use.

    `on_error` gets each error that a function raised; the reason of its page says it too.
    """
    for transform, settings in zip(load_transforms(job), job.transform, strict=True):
        transform.set_up()
        table = [one.name for one in job.tables].index(settings.table)
        limit = TimeLimit(settings.seconds, " ([transform] seconds)")

        def apply(key: str, part: Sequence[Record], transform: Transform = transform, limit: TimeLimit = limit) -> Made:
            try:
                with limit:
                    return transform.apply({key: part})[key]
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # noqa: BLE001 - the user's code
                on_error(error)
                return transform.reason(error)

        for page in pages:
            records = take_records(page, table)
            for start in range(0, len(records), settings.batch):
                made = apply(page.item.user_key, records[start : start + settings.batch])
                if isinstance(made, str):
                    page.fail(made)
                    break
                page.records.extend(made)
