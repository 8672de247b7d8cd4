"""Cuts texts into chunks that overlap, and gives each a vector: what a model would do, without one."""

from math import sqrt
from typing import Any
from zlib import crc32

CHUNK_WORDS, OVERLAP_WORDS = 40, 8
SIZE = 8
weights: list[float] = []


def setup() -> None:
    """Load the model, once in each process."""
    weights.extend(1 / (1 + number) for number in range(SIZE))


def chunks(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Make some records of each record; `_key` says whose they are."""
    made = []
    for record in records:
        words = record["words"]
        for position, start in enumerate(range(0, len(words), CHUNK_WORDS - OVERLAP_WORDS)):
            chunk = words[start : start + CHUNK_WORDS]
            made.append(
                {
                    "_key": record["_key"],
                    "page": record["_key"],
                    "position": position,
                    "text": " ".join(chunk),
                    "vector": embedded(chunk),
                }
            )
    return made


def embedded(words: list[str]) -> list[float]:
    """Hash words into a vector of length 1."""
    vector = [0.0] * SIZE
    for word in words:
        number = crc32(word.encode()) % SIZE
        vector[number] += weights[number]
    length = sqrt(sum(one * one for one in vector))
    return [one / length for one in vector]
