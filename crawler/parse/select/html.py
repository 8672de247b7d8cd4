"""CSS selectors through HTML: the only module that knows the library.

`li.product a` is the text of the first element that matches, with its blanks as browsers show them; `a @href` is an
attribute, absolute where it is a link; `li[]` and `a[] @href` are lists of all; `.` is the record itself. turbohtml:
the fastest of five libraries on ten real pages, and linear for deep or wide ones (measured in November 2026).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import ada_url
import turbohtml

from crawler.parse.response import Response
from crawler.parse.select.language import Language, Rows, not_of_format
from crawler.parse.select.path import ABSENT, Get, Node
from crawler.text.media_type import media_type

_PATH = re.compile(r"(?P<css>.*?)(?P<each>\[\])?(?:(?:^|\s+)@(?P<attribute>[^\s@\"'<>/=]+))?", re.DOTALL)
LINKS = frozenset({"href", "src", "action", "poster", "data-src"})
_NO_PAGE = turbohtml.parse("")
_NOT_HTML = ("application/json", "application/pdf", "image/", "audio/", "video/", "font/")


def _read(response: Response) -> turbohtml.Document:
    kind = media_type(response.headers.joined("content-type")).essence or ""
    if kind.startswith(_NOT_HTML):
        raise not_of_format(response, "HTML")
    return turbohtml.parse(response.text(), positions=False)


def _compile_get(path: str) -> Callable[[Any, str], Any]:
    match = _PATH.fullmatch(path.strip())
    assert match is not None  # each of its parts may be empty
    css, attribute = match["css"].strip(), match["attribute"]
    _check(css)
    value_of = _attribute(attribute) if attribute else _text

    def get(element: Any, url: str) -> Any:
        found = element.select_one(css) if css else element
        return ABSENT if found is None else value_of(found, url)

    def get_all(element: Any, url: str) -> Any:
        values = (value_of(found, url) for found in element.select(css))
        return [value for value in values if value is not ABSENT]

    return get_all if match["each"] else get


def _text(element: Any, _: str) -> str:
    return " ".join(element.text.split())


def _attribute(name: str) -> Callable[[Any, str], Any]:
    lower = name.lower()

    def value_of(element: Any, url: str) -> Any:
        value = element.attr(lower)
        if value is None:
            return ABSENT
        return _absolute(value.strip(), element, url) if lower in LINKS else value

    return value_of


def _absolute(link: str, element: Any, url: str) -> str:
    """The link as browsers resolve it, by the page's <base>; as it stands when it is none."""
    try:
        return str(ada_url.join_url(_base(element, url), link))
    except ValueError:
        return link


def _base(element: Any, url: str) -> str:
    """What links are relative to: the page's <base>, or its URL."""
    page = element
    for page in element.ancestors:  # noqa: B007 - the last one is the document
        pass
    base: str = page.base_url(url)
    return base


def _compile_rows(path: str | None) -> Rows:
    if path is None:
        return lambda document: (Node(document),)
    css = path.strip().removesuffix("[]").strip()
    _check(css)

    def rows(document: Any) -> Iterable[Node] | None:
        page = Node(document)
        found = document.select(css)
        return [Node(element, page, number) for number, element in enumerate(found)] or None

    return rows


def _check(css: str) -> None:
    """Raise ValueError, which says where the selector is wrong."""
    if css:
        _NO_PAGE.select(css)


def _never_quick(_: str, __: bool) -> Get | None:
    return None


HTML = Language(_read, _compile_get, _never_quick, _compile_rows, behind=" ", is_text=True)
