"""The response as the user's parser sees it: what came, and selectors through it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from crawler.job.fields import MEDIAWIKI_ALIASES
from crawler.model import Headers
from crawler.parse.received import NOTHING_CARRIED, Received
from crawler.parse.select.formats import language_of
from crawler.parse.select.language import Scope
from crawler.parse.select.path import ABSENT, Node, SelectorError
from crawler.parse.select.selector import compile_selector

if TYPE_CHECKING:
    from crawler.parse.select.markup import Element


class Response(Received):
    """What a parser gets. `language` is the job's `[parse] format`; the body is read once, when it is selected from."""

    __slots__ = ("_language", "_roots")

    def __init__(
        self,
        keys: Sequence[str],
        url: str,
        status: int,
        headers: Headers,
        body: bytes,
        alias_paths: Sequence[str] = MEDIAWIKI_ALIASES,
        source: Mapping[str, Any] = NOTHING_CARRIED,
        language: str = "json",
    ) -> None:
        super().__init__(keys, url, status, headers, body, alias_paths, source)
        self._language = language
        self._roots: dict[str, Any] | None = None

    def select(self, path: str) -> Any:
        """That to which a selector of the job's format leads from the response, as in the job file.

        None when nothing is there and it ends with `?`. Raises ValueError for a wrong one, SelectorError (a ValueError)
        when nothing is there, or the response is of another format.
        """
        selector = compile_selector(path, language_of(self._language))
        root = self._root(self._language)
        value = selector.select(Node(root), Scope(self, root))
        if value is not ABSENT:
            return value
        if selector.may_be_absent:
            return None
        raise SelectorError(f"nothing at {path}; write {path}? where it may be absent")

    def css(self, selector: str) -> list[Any]:
        """All elements that match, in order; with ` @attribute` its texts, absolute where they are links.

        An element has `text`, `attr(name)` and `css(selector)`. Raises ValueError for a wrong selector.
        """
        return self._page().css(selector)

    def links(self) -> list[str]:
        """The http and https URLs of all `<a href>` in order, absolute by `<base>`, each once, without fragments."""
        from crawler.parse.select.markup import links_of  # importing takes 30 ms, which other parsers need not wait

        return list(links_of(self._page().node, self.url))

    def _page(self) -> Element:
        from crawler.parse.select.markup import Element

        name = "xml" if self._language == "xml" else "html"
        return Element(self._root(name), language_of(name), self.url)

    def _root(self, name: str) -> Any:
        """The value in the body, by a format."""
        if self._roots is None:
            self._roots = {}
        if name not in self._roots:
            self._roots[name] = language_of(name).read(self)
        return self._roots[name]
