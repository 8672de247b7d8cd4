"""A sample body: JSON as APIs of catalogues, registries and statistics return it, the same at every start.

What a body costs a parser, and Postgres' compression, depends on its content. A long string of one letter costs nearly
nothing, so a benchmark with such bodies shows too high figures for all contenders.
"""

from __future__ import annotations

import json
import random

_WORDS = """
amber anchor basin birch border cedar chart cliff coast copper delta ember fable field forest frost garden
glacier granite harbour hazel island ivory jasper juniper kettle lagoon lantern maple marble meadow meridian
mosaic north orchard pebble prairie quarry raven reef ridge river saffron season sierra silver spruce summit
thistle timber tundra valley velvet violet walnut willow winter
""".split()  # noqa: SIM905 - as a list these would be 60 lines
_SEED = 2026


def sample(size: int, seed: int = _SEED) -> str:
    """A JSON object of `size` bytes, or the smallest possible one: different records, then words up to the size."""
    choice = random.Random(seed)
    parts: list[str] = []
    left = size - len('{"records": [], "rest": ""}')
    while (left := left - len(part := json.dumps(_record(choice, len(parts)))) - len(", ")) >= 0:
        parts.append(part)
    text = f'{{"records": [{", ".join(parts)}], "rest": ""}}'
    rest = " ".join(choice.choices(_WORDS, k=max(0, size - len(text))))[: max(0, size - len(text))]
    return f'{text[:-2]}{rest}"}}'


def _record(choice: random.Random, number: int) -> dict[str, object]:
    """One record of about 330 bytes, as of an article or a product: mostly text; a number, a date, a list, a null."""
    name = choice.choices(_WORDS, k=2)
    return {
        "number": number,
        "title": " ".join(name).title(),
        "url": f"https://{name[0]}.example.org/{name[1]}/{choice.randrange(10**8):08}",
        "summary": " ".join(choice.choices(_WORDS, k=choice.randint(12, 20))).capitalize() + ".",
        "active": choice.random() < 0.8,
        "changed": f"20{choice.randint(10, 25)}-{choice.randint(1, 12):02}-{choice.randint(1, 28):02}",
        "tags": choice.sample(_WORDS, k=choice.randint(1, 3)),
        "follows": None,
    }
