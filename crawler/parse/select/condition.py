"""Pure: conditions of the job file: `PATH`, `PATH = value` or `PATH != value`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from crawler.parse.select.language import Language, Scope
from crawler.parse.select.path import ABSENT, Node
from crawler.parse.select.selector import compile_selector

_CONDITION = re.compile(r"(?P<selector>.+?)(?:\s+(?P<operator>!?=)\s+(?P<value>.*))?", re.DOTALL)
# The reason when a condition holds, None when it does not.
Holds: TypeAlias = Callable[[Node, Scope], str | None]


@dataclass(frozen=True, slots=True)
class Condition:
    """A compiled condition; `is_of_response`: it says the same of every record; `is_of_head`: whatever the body is."""

    holds: Holds
    is_of_response: bool
    is_of_head: bool


def compile_condition(text: str, language: Language) -> Condition:
    """The compiled condition. Raises ValueError, which says where it is wrong.

    A path alone holds when something is there that is neither null nor false. A value is JSON where it can be, else
    text; nothing, and null, are equal to null alone. The reason is the text that a path alone leads to, else the
    condition.
    """
    match = _CONDITION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no condition")
    selector, operator, literal = compile_selector(match["selector"], language), match["operator"], match["value"]
    select = selector.select
    if operator is None:

        def is_there(node: Node, scope: Scope) -> str | None:
            value = select(node, scope)
            if value is ABSENT or value is None or value is False:
                return None
            return value if isinstance(value, str) and value.strip() else text

        return Condition(is_there, selector.is_of_response, selector.is_of_head)
    wanted = _literal(literal.strip())

    def compares(node: Node, scope: Scope) -> str | None:
        value = select(node, scope)
        return text if _is_equal(None if value is ABSENT else value, wanted) is (operator == "=") else None

    return Condition(compares, selector.is_of_response, selector.is_of_head)


def first_that_holds(conditions: Sequence[Condition], node: Node, scope: Scope) -> str | None:
    """The reason of the first condition that holds."""
    for condition in conditions:
        if (reason := condition.holds(node, scope)) is not None:
            return reason
    return None


def _literal(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _is_equal(value: Any, wanted: Any) -> bool:
    if isinstance(value, bool) or isinstance(wanted, bool) or value is None or wanted is None:
        return value is wanted
    # An API may write a code as 404 or as "404".
    return bool(value == wanted) or (isinstance(value, str) != isinstance(wanted, str) and str(value) == str(wanted))
