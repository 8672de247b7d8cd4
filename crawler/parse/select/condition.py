"""Pure: conditions of the job file: `PATH`, `PATH = value` or `PATH != value`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from crawler.parse.select.language import Language, Scope
from crawler.parse.select.path import ABSENT, NOT_ENCLOSED, Around, Node
from crawler.parse.select.selector import compile_selector
from crawler.parse.values import exact_json

_CONDITION = re.compile(r"(?P<selector>.+?)(?:\s+(?P<operator>!?=)\s+(?P<value>.*))?", re.DOTALL)
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_SECOND = re.compile(r"(?:\sand|\sor|&&|\|\|)\s.*\s!?=(?:\s|$)", re.DOTALL)
# What no path has outside of quotes: it was meant as a comparison, and would never hold.
_OPERATOR = re.compile(r"[!=<>]+")
# The reason when a condition holds, None when it does not.
Holds: TypeAlias = Callable[[Node, Scope], str | None]


@dataclass(frozen=True, slots=True)
class Condition:
    """A compiled condition; `is_of_response`: it says the same of every record; `is_of_head`: whatever the body is."""

    holds: Holds
    is_of_response: bool
    is_of_head: bool


def compile_condition(text: str, language: Language, around: Around = NOT_ENCLOSED) -> Condition:
    """The compiled condition on a node with this `around` it. Raises ValueError, which says where it is wrong.

    A path alone holds when something is there that is neither null, false, nor an empty list or object; where all
    values are texts, as in headers, the text "false" is false. A value is JSON where it can be, else text, also in
    single quotes; nothing, and null, are equal to null alone. The reason is the text that a path alone leads to, else
    the condition.
    """
    match = _CONDITION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no condition")
    operator, literal = match["operator"], match["value"]
    if operator is None and language.behind == "." and (found := _OPERATOR.search(_QUOTED.sub("", match["selector"]))):
        raise ValueError(
            f'{text!r}: write PATH = value or PATH != value, and PATH["{found[0]}"] where {found[0]} is in a name'
        )
    selector = compile_selector(match["selector"], language, around)
    select = selector.select
    if operator is None:
        all_texts = language.is_text or selector.is_of_head

        def is_there(node: Node, scope: Scope) -> str | None:
            value = select(node, scope)
            if isinstance(value, str):
                return None if all_texts and value == "false" else value if value.strip() else text
            return None if value is ABSENT or value is None or value is False or value in ([], {}) else text

        return Condition(is_there, selector.is_of_response, selector.is_of_head)
    literal = literal.strip()
    if literal[:1] not in ("'", '"') and _SECOND.search(literal):
        raise ValueError(f"{text!r}: write a list of conditions, of which one is enough")
    wanted = _literal(literal)

    def compares(node: Node, scope: Scope) -> str | None:
        value = select(node, scope)
        holds = value == literal or _is_equal(None if value is ABSENT else value, wanted)
        return text if holds is (operator == "=") else None

    return Condition(compares, selector.is_of_response, selector.is_of_head)


def first_that_holds(conditions: Sequence[Condition], node: Node, scope: Scope) -> str | None:
    """The reason of the first condition that holds."""
    for condition in conditions:
        if (reason := condition.holds(node, scope)) is not None:
            return reason
    return None


def _literal(text: str) -> Any:
    try:
        return exact_json.loads(text.encode())
    except ValueError:
        if len(text) > 1 and text[0] == text[-1] == "'":
            return text[1:-1]
        if text[:1] in ('"', "'"):
            raise ValueError(f"{text} is no text in quotes; close them, or put it in the other ones") from None
        return text


def _is_equal(value: Any, wanted: Any) -> bool:
    if value is None or wanted is None:
        return value is wanted
    # An API may write a code as 404 or as "404", and true as "true".
    if isinstance(value, str) != isinstance(wanted, str):
        return _written(value) == _written(wanted)
    return isinstance(value, bool) == isinstance(wanted, bool) and bool(value == wanted)


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
