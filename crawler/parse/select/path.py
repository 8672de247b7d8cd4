"""Pure: dotted paths through JSON, compiled once.

`a.b` goes into objects, `a.0` and `a.-1` to one element of a list, `a[]` to each of them, `a.*` to each value of an
object, `a["b.c"]` to a name with a dot. What is not there is ABSENT. A value of another kind than the path says, a list
where it names a member of an object, is an error: nothing is skipped without a word.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum
from operator import itemgetter, methodcaller
from typing import Any, Final, NamedTuple, TypeAlias

from crawler.parse.values.shown import abbreviated

MAX_STEPS = 100
_HINT = 'write a.b for a member, a["b c"] for an odd name, a.0 for an element, a[] and a.* for all'
_STEP = re.compile(
    r'(?P<each>\[\])|\["(?P<quoted>(?:[^"\\]|\\.)*)"\]'
    r"|(?P<dot>\.?)(?:(?P<values>\*)|(?P<index>0|-?[1-9][0-9]{0,8})(?=[.\[]|$)|(?P<name>[^.\[\]\"?^$*]+))"
)


class SelectorError(ValueError):
    """A response has not what a selector says, or something else there."""


class Absent(Enum):
    """The type of ABSENT, which stands for what is not in a response. Null is there."""

    ABSENT = 0


ABSENT: Final = Absent.ABSENT


class Each(Enum):
    """A step to several values: of a list, or of an object."""

    ELEMENT = "[]"
    VALUE = "*"
    RECORD = ""  # of a list each element, and anything else itself


Step: TypeAlias = str | int | Each
Get: TypeAlias = Callable[[Any], Any]


class Node(NamedTuple):
    """A value, the node in which `[]` or `*` found it, and where there: its number, and its name in an object."""

    value: Any
    outer: Node | None = None
    number: int = 0
    name: str | None = None


class Around(NamedTuple):
    """How many nodes enclose a record, and whether it has a name, as a value of an object has."""

    levels: int = 0
    has_name: bool = False


NOT_ENCLOSED: Final = Around()


def read_path(text: str) -> Sequence[Step]:
    """The steps of a path, none for an empty one; blanks around it are none of a name's. Raises ValueError."""
    text = text.strip()
    steps: list[Step] = []
    at = 0
    while at < len(text):
        match = _STEP.match(text, at)
        if match is None or (match["dot"] is not None and bool(match["dot"]) != bool(steps)):
            raise ValueError(f"{text!r} is wrong at character {at + 1}; {_HINT}")
        at = match.end()
        if match["each"]:
            steps.append(Each.ELEMENT)
        elif match["values"]:
            steps.append(Each.VALUE)
        elif match["index"]:
            steps.append(int(match["index"]))
        else:
            quoted = match["quoted"]
            steps.append(match["name"] if quoted is None else re.sub(r"\\(.)", r"\1", quoted))
    if len(steps) > MAX_STEPS:
        raise ValueError(f"{len(steps)} steps are too many; a path has at most {MAX_STEPS}")
    return steps


def compile_path(text: str) -> Get:
    """The function from a value to that to which the path leads, or ABSENT; with `[]` or `*` to a list of all."""
    steps = read_path(text)
    first = next((at for at, step in enumerate(steps) if isinstance(step, Each)), len(steps))
    straight, rest = steps[:first], steps[first:]
    if len(steps) == 1 and isinstance(steps[0], str):
        name = steps[0]
        return lambda value: value.get(name, ABSENT) if type(value) is dict else _step(value, name, text)

    def get(value: Any) -> Any:
        value = walk(value, straight, text)
        if not rest or value is ABSENT:
            return value
        return ABSENT if value is None else [node.value for node in expand(Node(value), rest, text)]

    return get


def compile_quick(text: str, may_be_absent: bool) -> Get | None:
    """The same as `compile_path` in fewer steps, with null for what may be absent; None when the path is no plain one.

    The function raises KeyError, TypeError or AttributeError where something else is there, or nothing that must be.
    """
    steps = read_path(text)
    first, last = steps[0] if steps else None, steps[-1] if steps else None
    if len(steps) > 2 or not isinstance(first, str) or not isinstance(last, str):
        return None
    if len(steps) == 1:
        return methodcaller("get", first) if may_be_absent else itemgetter(first)
    return None if may_be_absent else lambda value: value[first][last]


def walk(value: Any, steps: Sequence[Step], text: str) -> Any:
    """That to which steps to single values lead, or ABSENT."""
    for step in steps:
        value = _step(value, step, text)
    return value


def expand(node: Node, steps: Sequence[Step], text: str) -> Iterator[Node]:
    """The nodes to which the steps lead, in the order of the response. What is not there is left out."""
    value: Any = node.value
    for at, step in enumerate(steps):
        if step is Each.RECORD and node.outer is not None and value is node.value:
            yield node
            return
        if step is Each.RECORD and not isinstance(value, list):
            yield Node(value, node)
            return
        if isinstance(step, Each):
            rest = steps[at + 1 :]
            for number, (name, inner) in enumerate(_members(value, step, text)):
                inner_node = Node(inner, node, number, name)
                if rest:
                    yield from expand(inner_node, rest, text)
                else:
                    yield inner_node
            return
        value = _step(value, step, text)
        if value is ABSENT:
            return
    yield node._replace(value=value)


def _members(value: Any, step: Each, text: str) -> Iterable[tuple[str | None, Any]]:
    if value is None:
        return ()
    if step is Each.VALUE:
        if isinstance(value, dict):
            return value.items()
        raise SelectorError(f"{text}: .* is for the values of an object, and this is {abbreviated(value)}")
    if isinstance(value, list):
        return ((None, element) for element in value)
    hint = "; write .* for the values of an object" if isinstance(value, dict) else ""
    raise SelectorError(f"{text}: [] is for the elements of a list, and this is {abbreviated(value)}{hint}")


def _step(value: Any, step: Step, text: str) -> Any:
    if value is None or value is ABSENT:
        return ABSENT
    if isinstance(value, dict):
        return value.get(step if isinstance(step, str) else str(step), ABSENT)
    if isinstance(value, list):
        if isinstance(step, int):
            return value[step] if -len(value) <= step < len(value) else ABSENT
        raise SelectorError(
            f"{text}: {step!r} stands behind a list; write [] for each of its elements, or .0 for the first"
        )
    raise SelectorError(f"{text}: {step!r} stands behind {abbreviated(value)}, which has no members")
