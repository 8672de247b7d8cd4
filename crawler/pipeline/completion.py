"""What a committed load means for the queue: outcomes, deferred keys, and the blocks that it finishes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from coordinator.queue.streams import Completion, FinishedBlock
from coordinator.queue.wire import Deferral
from crawler.model import OpenBlock
from crawler.pipeline.batch import Load


def completion_of(load: Load, requests: int, received: int) -> Completion:
    """The completion of a load. Call it once for each load, because it counts down what is left of each block.

    `requests` were sent, and `received` bytes of bodies came, since the last completion.
    """
    return Completion(
        outcomes=[(page.item.digest, page.outcome) for page in load.pages],
        finished=[FinishedBlock(block.shard, block.entry, block.keys) for block in _finished_blocks(load)],
        deferred=[Deferral(one.item.digest, one.item.key, one.attempts, one.delay) for one in load.deferred],
        requests=requests,
        received=received,
    )


def _finished_blocks(load: Load) -> Iterator[OpenBlock]:
    """The blocks that had nothing to fetch, and those whose last open key this load commits or defers."""
    yield from load.done_blocks
    for _, _, block in chain((page.item for page in load.pages), (one.item for one in load.deferred)):
        block.left -= 1
        if not block.left:
            yield block
