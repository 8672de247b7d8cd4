"""CSS selectors through HTML and XML. Only this module and `rendered` know the library.

`li.product a` is the text of the first element that matches, with its blanks as browsers show them; `a @href` is an
attribute, absolute where it is a link; `li[]` and `a[] @href` are lists of all; `.` is the record itself. In XML an
element, and an attribute, is found by its name without the prefix of its namespace. turbohtml: the fastest of five
libraries on ten real pages, and linear for deep or wide ones (measured in November 2026).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import methodcaller
from typing import Any, TypeAlias

import turbohtml

from coordinator.url import join_all
from crawler.parse.received import Received
from crawler.parse.select.language import Language, Rows, Scope, not_of_format
from crawler.parse.select.path import ABSENT, Around, Get, Node, SelectorError
from crawler.parse.select.rendered import html_text, plain_text
from crawler.text.media_type import media_type

_PATH = re.compile(r"(?P<css>.*?)(?P<each>\[\])?(?:(?:^|\s+)@(?P<attribute>[^\s@\"'<>/=]+))?", re.DOTALL)
LINKS = frozenset({"href", "src", "action", "poster", "data-src"})
_NO_PAGE = turbohtml.parse("")
_NOT_MARKUP = ("application/json", "application/pdf", "image/", "audio/", "video/", "font/")
# What may stand before the first element. The groups are possessive: nothing of them is tried twice.
_DOCTYPE = re.compile(r"(?:\s|<\?(?:[^?]|\?(?!>))*+\?>|<!--(?:[^-]|-(?!->))*+-->)*+<!DOCTYPE", re.IGNORECASE)
_WITH_PREFIX = re.compile(r"[\w*-]\|[\w*]")
# What an element has, or None.
ValueOf: TypeAlias = Callable[[Any], Any]
# The links of elements, in their order, absolute; with the URL of the response.
Absolute: TypeAlias = Callable[[Sequence[Any], Sequence[str], str], Sequence[str]]


def _read_html(response: Received) -> turbohtml.Document:
    _refuse_others(response, "HTML")
    return turbohtml.parse(response.text("html"), positions=False)


def _read_xml(response: Received) -> turbohtml.Document:
    """The document, its elements without prefixes. What a DOCTYPE declares is never read: it is refused."""
    _refuse_others(response, "XML", "image/svg+xml")
    text = response.text("xml").lstrip()  # some feeds begin with an empty line
    if _DOCTYPE.match(text):
        raise SelectorError("the response is XML with a DOCTYPE, whose entities may be endless, so it is not read")
    try:
        document = turbohtml.parse_xml(text)
    except turbohtml.HTMLParseError as error:
        fault = error.error
        words = fault.code.removeprefix("xml-").replace("-", " ")
        place = f"{words} at line {fault.line}, column {fault.col + 1}"
        raise not_of_format(response, "well-formed XML", ValueError(place)) from None
    if "<![CDATA[" in text:  # which the text of an element leaves out
        for section in [node for node in document.descendants if isinstance(node, turbohtml.CData)]:
            section.replace_with(turbohtml.Text(section.data))
    for element in document.select("*"):
        _, colon, name = element.tag.rpartition(":")
        if colon:
            element.tag = name
    return document


def _refuse_others(response: Received, name: str, but: str = "") -> None:
    kind = media_type(response.headers.joined("content-type")).essence or ""
    if kind.startswith(_NOT_MARKUP) and kind != but:
        raise not_of_format(response, name)


def _compile_with(
    text_of: ValueOf,
    value_of_attribute: Callable[[str], ValueOf],
    absolute: Absolute,
    check: Callable[[str], None],
) -> Callable[[str], Callable[[Any, str], Any]]:
    def compile_get(path: str) -> Callable[[Any, str], Any]:
        match = _PATH.fullmatch(path.strip())
        assert match is not None  # each of its parts may be empty
        css, attribute = match["css"].strip(), match["attribute"]
        if attribute and attribute.endswith("[]"):
            raise ValueError(f"{path!r}: write {css}[] @{attribute[:-2]}")
        check(css)
        value_of, is_link = text_of, False
        if attribute:
            value_of, is_link = value_of_attribute(attribute), attribute.lower() in LINKS

        def get(element: Any, url: str) -> Any:
            found = element.select_one(css) if css else element
            if attribute and isinstance(found, turbohtml.Document):
                found = found.select_one(":root")  # a document has none
            value = None if found is None else value_of(found)
            if value is None:
                return ABSENT
            return absolute([found], [value], url)[0] if is_link else value

        def get_all(element: Any, url: str) -> Any:
            found = [(node, value) for node in element.select(css) if (value := value_of(node)) is not None]
            values = [value for _, value in found]
            return absolute([node for node, _ in found], values, url) if is_link and values else values

        return get_all if match["each"] else get

    return compile_get


def _html_attribute(name: str) -> ValueOf:
    return methodcaller("attr", name.lower())


def _xml_attribute(name: str) -> ValueOf:
    def value_of(element: Any) -> Any:
        value = element.attr(name)
        if value is None:
            alike = (text for other, text in element.attrs.items() if other.endswith(f":{name}"))
            value = next(alike, None)
        return value

    return value_of


def _html_links(elements: Sequence[Any], links: Sequence[str], url: str) -> Sequence[str]:
    """What they are relative to is the page's <base>, or its URL."""
    page = elements[0]
    for page in elements[0].ancestors:  # noqa: B007 - the last one is the document
        pass
    return join_all(_base_of_page(page, url), links)


def _xml_links(elements: Sequence[Any], links: Sequence[str], url: str) -> Sequence[str]:
    """What they are relative to is the `xml:base` of their elements (W3C XML Base; RFC 4287, section 2), or the URL."""
    return [join_all(_xml_base(element, url), [link])[0] for element, link in zip(elements, links, strict=True)]


def _xml_base(element: Any, url: str) -> str:
    around = (node for node in (element, *element.ancestors) if isinstance(node, turbohtml.Element))
    for base in reversed([base for node in around if (base := node.attr("xml:base"))]):
        url = join_all(url, [base])[0]
    return url


@lru_cache(maxsize=1)  # the library looks through the whole page for it, and a page may have a million links
def _base_of_page(page: Any, url: str) -> str:
    base: str = page.base_url(url)
    return base if base == url else join_all(url, [base])[0]


def _compile_rows_with(check: Callable[[str], None]) -> Callable[[str | None], Rows]:
    def compile_rows(path: str | None) -> Rows:
        css = (path or "").strip().removesuffix("[]").strip()
        if not css:
            return lambda document: (Node(document),)
        check(css)

        def rows(document: Any) -> Iterable[Node] | None:
            page = Node(document)
            found = document.select(css)
            return [Node(element, page, number) for number, element in enumerate(found)] or None

        return rows

    return compile_rows


def _check_html(css: str) -> None:
    """Raise ValueError, which says where the selector is wrong."""
    if css:
        _NO_PAGE.select(css)


def _is_css(css: str) -> bool:
    try:
        _NO_PAGE.select(css)
    except ValueError:
        return False
    return True


def _check_xml(css: str) -> None:
    if _WITH_PREFIX.search(css) or (":" in css and not _is_css(css)):
        raise ValueError(f"{css!r}: write names without the prefix of their namespace, like title for dc:title")
    _check_html(css)


def _compile_without_with(check: Callable[[str], None]) -> Callable[[Sequence[str]], Callable[[Any], bytes]]:
    def compile_without(paths: Sequence[str]) -> Callable[[Any], bytes]:
        found = [match for path in paths if (match := _PATH.fullmatch(path.strip()))]
        for match in found:
            check(match["css"].strip())
            if not match["css"].strip():
                raise ValueError("a selector without an element is all of the response")

        def without(document: Any) -> bytes:
            for match in found:
                for element in document.select(match["css"].strip()):
                    if match["attribute"] is None:
                        element.decompose()
                    else:
                        element.attrs.pop(match["attribute"], None)
            return bytes(document.html, "utf-8", "surrogatepass")

        return without

    return compile_without


def _is_list(path: str) -> bool:
    return re.search(r"\[\](\s+@\S*)?\s*$", path) is not None


def _around(path: str | None) -> Around:
    return Around(levels=1 if (path or "").strip("[] \t\n") else 0)


def _never_quick(_: str, __: bool) -> Get | None:
    return None


def _article(name: str) -> Callable[[Scope], Any]:
    return lambda scope: getattr(_article_of_page(scope.root), name) or ABSENT


@lru_cache(maxsize=1)  # several columns are of it, and it is costly to find
def _article_of_page(page: Any) -> Any:
    return page.article()


def _markdown(scope: Scope) -> Any:
    content = scope.root.main_content()
    return ABSENT if content is None else content.to_markdown()


HTML = Language(
    _read_html,
    _compile_with(html_text, _html_attribute, _html_links, _check_html),
    _never_quick,
    _compile_rows_with(_check_html),
    _compile_without_with(_check_html),
    _is_list,
    _around,
    behind=" ",
    is_text=True,
    words={
        **{f"article.{name}": _article(name) for name in ("text", "title", "date")},
        "article.author": _article("byline"),
        "markdown": _markdown,
    },
)
XML = Language(
    _read_xml,
    _compile_with(plain_text, _xml_attribute, _xml_links, _check_xml),
    _never_quick,
    _compile_rows_with(_check_xml),
    _compile_without_with(_check_xml),
    _is_list,
    _around,
    behind=" ",
    is_text=True,
)


@dataclass(frozen=True, slots=True)
class Element:
    """An element of a page, as `Response.css` finds it."""

    node: Any
    language: Language
    url: str

    @property
    def text(self) -> str:
        """Its text, with one blank for each run of blanks."""
        text: str = self.language.compile_get("")(self.node, self.url)
        return text

    def attr(self, name: str) -> str | None:
        """An attribute, absolute where it is a link; None when it has not got it."""
        value = self.language.compile_get(f"@{name}")(self.node, self.url)
        return None if value is ABSENT else value

    def css(self, selector: str) -> list[Any]:
        """All that match inside of it, in order: elements, or texts with ` @attribute`. Raises ValueError."""
        if "@" in selector and (match := _PATH.fullmatch(selector.strip())) and match["attribute"]:
            values: list[Any] = self.language.compile_get(f"{match['css'].strip()}[] @{match['attribute']}")(
                self.node, self.url
            )
            return values
        return [Element(node, self.language, self.url) for node in self.node.select(selector)]


def links_of(document: Any, url: str) -> Iterator[str]:
    """The absolute http and https URLs of the links of a page, each once and without its fragment, in order."""
    links = join_all(_base_of_page(document, url), [anchor.attr("href") for anchor in document.select("a[href]")])
    for link in dict.fromkeys(link.partition("#")[0] for link in links):
        if link.startswith(("http://", "https://")):
            yield link
