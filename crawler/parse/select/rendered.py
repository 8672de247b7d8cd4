"""The text of an element, in HTML as a browser shows it."""

from __future__ import annotations

from typing import Any

import turbohtml

# HTML Standard, section 15.3, "Rendering": what is not shown, and what does not continue a line.
_HIDDEN = "script, style, template"
_BREAKS = (
    "address, article, aside, blockquote, body, br, caption, center, dd, details, dialog, dir, div, dl, dt, fieldset, "
    "figcaption, figure, footer, form, h1, h2, h3, h4, h5, h6, header, hgroup, hr, legend, li, listing, main, menu, "
    "nav, ol, optgroup, option, p, plaintext, pre, search, section, summary, table, tbody, td, tfoot, th, thead, tr, "
    "ul, xmp"
)
_NOT_INLINE = f"{_HIDDEN}, {_BREAKS}"
_HIDDEN_TAGS, _BREAKING_TAGS = frozenset(_HIDDEN.split(", ")), frozenset(_BREAKS.split(", "))


def plain_text(element: Any) -> str:
    """The text in an element, with one blank for each run of blanks."""
    return " ".join(element.text.split())


def html_text(element: Any) -> str:
    """The text of an element with blanks where a browser begins another line or cell; without scripts and styles."""
    if element.select_one("*") is None or element.select_one(_NOT_INLINE) is None:
        return plain_text(element)
    parts: list[str] = []
    rest: list[Any] = [*element.children][::-1]
    while rest:
        node = rest.pop()
        if isinstance(node, str):
            parts.append(node)
        elif isinstance(node, turbohtml.Text):
            parts.append(node.data)
        elif isinstance(node, turbohtml.Element) and (tag := node.tag) not in _HIDDEN_TAGS:
            inner = reversed([*node.children])
            rest += (" ", *inner, " ") if tag in _BREAKING_TAGS else inner
    return " ".join("".join(parts).split())
