"""Pure: one selector of the job file, compiled once: a path in the record, the response, or what encloses a record.

A path begins at the record, and `.` is all of it. Behind `$` it begins at the response, and `$` is all of it; behind
`^` at what encloses the record, behind `^^` at what encloses that. `$key`, `$url`, `$status`, `$header.NAME`, `$index`,
`$name`, `$sha256` and `$source.COLUMN` are words about them. With `?` behind it, a selector may lead to nothing. Of a
list of selectors the first counts that leads to something.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, TypeAlias
from uuid import UUID

from crawler.parse.select.language import Language, Scope
from crawler.parse.select.path import ABSENT, NOT_ENCLOSED, Around, Get, Node

_SELECTOR = re.compile(
    r"(?:(?P<outer>\^+)|\$(?P<word>[a-z0-9]+)(?:\.(?P<member>[\w-]+))?|(?P<root>\$))?(?P<path>.*?)(?P<may>\??)"
)
_WORDS: dict[str, Callable[[Node, Scope], Any]] = {
    "key": lambda _, scope: scope.response.key,
    "url": lambda _, scope: scope.response.url,
    "status": lambda _, scope: scope.response.status,
    "sha256": lambda _, scope: sha256(scope.response.body).hexdigest(),
    "index": lambda node, _: node.number,
    "name": lambda node, _: ABSENT if node.name is None else node.name,
}


# Of each kind of text one that some type takes; and of everything that a selector can lead to.
# fmt: off
_TEXTS = ("0", "true", "00:00", "00:00Z", "1970-01-01", "1970-01-01T00:00", "1970-01-01T00:00Z", str(UUID(int=0)), "a")
# fmt: on
_SINGLE = (0, True, *_TEXTS)
_ANYTHING = (*([one] for one in _SINGLE), *_SINGLE)

Select: TypeAlias = Callable[[Node, Scope], Any]


@dataclass(frozen=True, slots=True)
class Selector:
    """A compiled selector. `quick` is what compile_quick made of a path in the record.

    `is_of_response`: it leads to the same from every record of a response; `is_of_head`: whatever the body is.
    `examples` are of every kind of value to which it can lead.
    """

    text: str
    select: Select
    may_be_absent: bool
    quick: Get | None = None
    is_of_response: bool = False
    is_of_head: bool = False
    examples: Sequence[Any] = _ANYTHING


def compile_selector(text: str | Sequence[str], language: Language, around: Around = NOT_ENCLOSED) -> Selector:
    """The compiled selector for a node with this `around` it. Raises ValueError, which says what is wrong."""
    if isinstance(text, str):
        return _compile(text, language, around)
    if not text:
        raise ValueError("a list without a selector")
    parts = [_compile(part, language, around) for part in text]

    def select(node: Node, scope: Scope) -> Any:
        for part in parts:
            if (value := part.select(node, scope)) is not ABSENT and value is not None:
                return value
        return ABSENT

    return Selector(
        " or ".join(text), select, any(part.may_be_absent for part in parts),
        is_of_response=all(part.is_of_response for part in parts),
        is_of_head=all(part.is_of_head for part in parts),
        examples=[example for part in parts for example in part.examples],
    )  # fmt: skip


def _compile(text: str, language: Language, around: Around) -> Selector:
    match = _SELECTOR.fullmatch(text.strip())
    if match is None or not text.strip():
        raise ValueError(f"{text!r} is no selector")
    may, path = bool(match["may"]), match["path"]
    if word := match["word"]:
        if word == "name" and not around.has_name:
            raise ValueError(f"{text!r}: the record has no name there; only rows that end with .* have one")
        return _word(text, word, match["member"], path, may, language)
    if begin := match["outer"] or match["root"]:
        if path and not path.startswith((language.behind, "[")):
            raise ValueError(f"{text!r}: write {begin}{language.behind}{path}")
        path = path.removeprefix(language.behind)
    elif path == ".":
        path = ""
    levels = len(match["outer"] or "")
    if levels > around.levels:
        raise ValueError(f"{text!r}: nothing encloses the record there")
    single = _TEXTS if language.is_text and path else _SINGLE
    examples = [[one] for one in single] if language.is_list(path) else _TEXTS if single is _TEXTS else _ANYTHING
    get = language.compile_get(path)

    def select(node: Node, scope: Scope) -> Any:
        for _ in range(levels):
            assert node.outer is not None  # there are as many
            node = node.outer
        return get(node.value, scope.response.url)

    if match["root"]:
        return Selector(
            text, lambda _, scope: get(scope.root, scope.response.url), may, is_of_response=True, examples=examples
        )
    quick = None if levels else language.compile_quick(path, may)
    return Selector(text, select, may, quick, examples=examples)


def _word(text: str, word: str, member: str | None, path: str, may: bool, language: Language) -> Selector:
    name = f"{word}.{member}" if member else word
    if not path and member and word == "header":

        def select_header(_: Node, scope: Scope) -> Any:
            value = scope.response.headers.joined(member)
            return ABSENT if value is None else value

        return Selector(text, select_header, may, is_of_response=True, is_of_head=True)
    if not path and member and word == "source":
        return Selector(text, lambda _, scope: scope.response.source.get(member, ABSENT), may)
    if not path and (of_format := language.words.get(name)):
        return Selector(text, lambda _, scope: of_format(scope), may, is_of_response=True)
    if path or name not in _WORDS:
        words = (*_WORDS, *language.words, "header.NAME", "source.COLUMN")
        known = ", ".join(f"${one}" for one in words)
        raise ValueError(
            f"{text!r} is not known; write one of {known}, or ${language.behind}{word} for what is in the response"
        )
    of_response = word not in ("index", "name", "key")
    return Selector(text, _WORDS[word], may, is_of_response=of_response, is_of_head=of_response)
