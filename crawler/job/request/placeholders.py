"""Pure: the places in texts of `[request]`: {key}, {keys}, {name}, ${NAME}."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from coordinator.errors import UsageError
from coordinator.url import HAS_USER, InvalidUrl, parse
from crawler.job.request.settings import RequestSettings

SECRET = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
# {name}, {name:path}, {name:number}; {{name}} stands for the text {name}, and ${NAME} for a secret.
_PLACE = re.compile(r"\{\{([A-Za-z_][\w.-]*)\}\}|(\$)?\{([A-Za-z_][\w.-]*)(?::(path|number))?\}")
KEY_NAMES = frozenset({"key", "keys"})


class Placeholder(NamedTuple):
    """What stands in braces in a text of `[request]`: a name, and how its value is written ("path", "number", "").

    `is_secret`: it is ${NAME}, a variable of the environment.
    """

    name: str
    form: str = ""
    is_secret: bool = False


Parts = tuple[str | Placeholder, ...]


def parts_of(text: str) -> Parts:
    """A text of `[request]`, cut at its places. Braces around anything but a name are text."""
    parts: list[str | Placeholder] = []
    end = 0
    for found in _PLACE.finditer(text):
        literal, dollar, name, form = found.groups()
        before = text[end : found.start()] + (f"{{{literal}}}" if literal else "")
        if before and parts and isinstance(parts[-1], str):
            parts[-1] += before
        elif before:
            parts.append(before)
        if name:
            parts.append(Placeholder(name, form or "", dollar is not None))
        end = found.end()
    if end < len(text):
        parts[-1:] = [parts[-1] + text[end:]] if parts and isinstance(parts[-1], str) else [*parts[-1:], text[end:]]
    return tuple(parts)


def without_places(text: str) -> str | None:
    """A text whose only places are ${NAME}, with {name} for {{name}}; None for one with others."""
    parts = parts_of(text)
    if any(isinstance(part, Placeholder) and not part.is_secret for part in parts):
        return None
    return "".join(part if isinstance(part, str) else f"${{{part.name}}}" for part in parts)


def places_in(node: Any) -> Iterator[Placeholder]:
    """The places in all texts of a value of `[request]`, such as `json`."""
    if isinstance(node, str):
        yield from (part for part in parts_of(node) if isinstance(part, Placeholder))
    elif isinstance(node, dict | list | tuple):
        for part in node.values() if isinstance(node, dict) else node:
            yield from places_in(part)


def fields_named(request: RequestSettings) -> dict[str, str]:
    """The named fields that a request is made of, each with the setting that names it."""
    settings = ("url", "headers", "json", "form", "body")
    return {
        place.name: name
        for name in reversed(settings)
        for place in places_in(getattr(request, name))
        if not place.is_secret and place.name not in KEY_NAMES
    }


def split_template(url: str) -> Parts:
    """The request template, cut at its places; ${NAME} is text of it. Raises UsageError."""
    parts: list[str | Placeholder] = [""]
    for part in parts_of(url):
        text = f"${{{part.name}}}" if isinstance(part, Placeholder) and part.is_secret else part
        if isinstance(text, str) and isinstance(parts[-1], str):
            parts[-1] += text
        else:
            parts.append(text)
    texts = [part for part in parts if isinstance(part, str)]
    head, sample = texts[0], "".join(part if isinstance(part, str) else "0" for part in parts)
    rest = SECRET.sub("", "".join(texts))
    if (count := sum(isinstance(part, Placeholder) and part.name in KEY_NAMES for part in parts)) > 1:
        raise UsageError(f"[request] url: {count} placeholders; put {{key}} or {{keys}} in it once")
    if any(isinstance(part, Placeholder) and part.form == "number" for part in parts):
        raise UsageError("[request] url: :number is for json; a URL has the text as it is")
    if "{" in rest or "}" in rest or "{{" in url:
        raise UsageError("[request] url: a single { or }; write %7B and %7D for braces of the URL itself")
    if len(parts) > 1 and "#" in "".join(texts[: -1 if isinstance(parts[-1], str) else None]):
        raise UsageError("[request] url: what follows # is never sent, so the key cannot stand there")
    if any(char == " " or not char.isprintable() for char in url):
        raise UsageError("[request] url: it has a space or a control character; write %20 for a space")
    try:
        origin = parse(head).origin
    except InvalidUrl as error:
        advice = (
            "write an Authorization header" if str(error) == HAS_USER else "write it like https://host/path?id={key}"
        )
        raise UsageError(f"[request] url: it {error}; {advice}") from None
    if "{" in origin.host:
        raise UsageError("[request] url: the host may not come from the environment; put ${NAME} behind it")
    try:
        depends = parse(sample).origin != origin
    except InvalidUrl:
        depends = True
    if depends:
        raise UsageError("[request] url: the host may not depend on the key; make the source yield URLs instead")
    return tuple(parts)
