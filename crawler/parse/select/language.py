"""The language of selectors that a format has: how a body is read, and what a path through it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from crawler.parse.received import NOT_READ, Received
from crawler.parse.select.path import Around, Get, Node, SelectorError

# The nodes of the records in a value; None when the path leads to nothing.
Rows: TypeAlias = Callable[[Any], Iterable[Node] | None]
MAX_BODY_SHOWN = 40


@dataclass(frozen=True, slots=True)
class Scope:
    """One response, and the value in its body. A response does not know its scope: no cycle keeps its memory."""

    response: Received
    root: Any


def scope_of(response: Received, language: Language) -> Scope:
    """The scope of a response, whose body is read once. Raises SelectorError when it is of another format."""
    if response.root is NOT_READ:
        response.root = language.read(response)
    return Scope(response, response.root)


class Lines(list[Mapping[str, str]]):
    """The lines of a csv, and the names of all of their fields."""

    names: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Language:
    """What one format needs. The functions of paths raise ValueError for a wrong one, `read` SelectorError.

    `read` makes the value of a response. `compile_get` makes the function from a value, and the URL of the response, to
    that to which a path leads; `compile_quick` what path.compile_quick says; `compile_without` the function from a
    value to its bytes without that to which some paths lead. `is_list`: a path leads to a list, or to nothing; `around`
    says what encloses a record of these rows. `behind` stands between `$` or `^` and a path. `is_text`: values
    are texts, which the types of their columns turn into what they take. `has_lines`: without `rows` each line is a
    record, and not the response. `words` are those that this format has beside the usual ones, like `$markdown`.
    """

    read: Callable[[Received], Any]
    compile_get: Callable[[str], Callable[[Any, str], Any]]
    compile_quick: Callable[[str, bool], Get | None]
    compile_rows: Callable[[str | None], Rows]
    compile_without: Callable[[Sequence[str]], Callable[[Any], bytes]]
    is_list: Callable[[str], bool]
    around: Callable[[str | None], Around]
    behind: str = "."
    is_text: bool = False
    has_lines: bool = False
    words: Mapping[str, Callable[[Scope], Any]] = field(default_factory=dict)


def not_of_format(response: Received, name: str, error: Exception | None = None) -> SelectorError:
    """The error for a body of another format: it says what came."""
    kind = response.headers.joined("content-type") or "without a media type"
    where = f" ({error})" if error is not None else ""
    return SelectorError(f"the response is no {name} but {kind}: {response.text()[:MAX_BODY_SHOWN]!r}{where}")
