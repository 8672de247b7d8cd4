"""Handlers for a child process."""

from __future__ import annotations

import os
from collections.abc import Callable

from coordinator.errors import ShardcrawlError


def add(summand: int) -> Callable[[int], int]:
    """Adds the summand; exits with code 7 when the task is 0."""

    def handle(task: int) -> int:
        if task == 0:
            os._exit(7)
        return task + summand

    return handle


def refuse(reason: str) -> Callable[[int], int]:
    raise ShardcrawlError(reason)
