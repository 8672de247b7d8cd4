"""Parse function and transform of `pipeline`, which all contenders call.

`python -m ops.bench.step RECORDS PROCESSES` is the limit: the transform alone, with the records in memory.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from multiprocessing import Pool
from time import thread_time, time
from typing import Any
from zlib import crc32

from ops.bench.report import Report

ALONE = "the step alone"
CPU_SECONDS = 0.005


def items(response: Any) -> dict[str, list[dict[str, Any]]]:
    """The parse function of the job."""
    return {"things": [parsed(response.body)]}


def parsed(body: bytes) -> dict[str, Any]:
    """The record of a response: the name and a text."""
    content = json.loads(body)
    return {"name": content["id"], "text": content["records"][0]["summary"]}


def scored(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The transform: each record with a score, which takes 5 ms of CPU, and with the time when it had it."""
    return [_scored(record) for record in records]


def _scored(record: dict[str, Any]) -> dict[str, Any]:
    # By the CPU time of the thread: with a wall clock, one core could do the work of two.
    end = thread_time() + CPU_SECONDS
    while thread_time() < end:
        pass
    return {**record, "score": score(record["name"], record["text"]), "at": time()}


def score(name: str, text: str) -> int:
    """What is computed of a record, without the 5 ms."""
    return crc32(f"{name} {text}".encode())


def _timed(records: int, _: int) -> Report:
    first = time()
    scored([{"name": str(number), "text": ""} for number in range(records)])
    return Report(records, first, time())


def main() -> None:
    """Make so many records, shared among so many processes, and print the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("records", type=int)
    parser.add_argument("processes", type=int)
    arguments = parser.parse_args()
    with Pool(arguments.processes) as pool:
        share = partial(_timed, arguments.records // arguments.processes)
        print(Report.merged(pool.map(share, range(arguments.processes), chunksize=1)).line)


if __name__ == "__main__":
    main()
