"""Pure: what is sent for one key or several: the target, and method, headers and body."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import quote, unquote_plus, urlencode

import msgspec

from coordinator.model import NO_CONTEXT, KeyContext
from coordinator.source.key_rule import KeyRule
from coordinator.url import InvalidUrl, Origin, Target, parse
from crawler.fetch.network.credentials import Pairs
from crawler.fetch.network.redirect import may_carry_credentials
from crawler.job.request.placeholders import KEY_NAMES, Parts, Placeholder, fields_named, parts_of, split_template
from crawler.job.request.settings import LoginSettings, RequestSettings
from crawler.model import GET, Payload

# So many characters are never more bytes than a key may have.
QUICK_CHARACTERS = 2048
# Stands in the place of the key while the template is parsed.
_MARK = "0key0"
# Before a key, this could make a dot of it: the standard reads %2e as one.
_HALF_ENCODED = re.compile("%2?$")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e]*")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,99})(?:\.[0-9]{1,99})?(?:[eE][+-]?[0-9]{1,3})?")


class Template:
    """The job's request template; without one every key is a URL itself. Raises UsageError when it is malformed.

    `parsed` is the origin of all keys, and what stands before and after the key in the request target; None when these
    depend on the key, or on named fields. `secrets` are those of the body by name; one that is missing stays ${NAME}.
    `is_repeatable`: a request may be sent again though the upstream may have carried it out.
    """

    def __init__(self, settings: RequestSettings, secrets: Mapping[str, str] | None = None) -> None:
        self._joint = settings.separator
        self._separator = quote(settings.separator, safe="")
        self._rule = KeyRule(absolute_url=True)
        self._parts = None if settings.url is None else split_template(settings.url)
        self._ends = None if self._parts is None else _ends(self._parts)
        self.parsed = None if self._ends is None else _parse_once(*self._ends)
        marked = [_MARK if isinstance(part, Placeholder) else part for part in self._parts or ()]
        self._base = parse("".join(marked)) if marked else None
        self._around = 0 if self._base is None else len(self._base.path) - len(_MARK) * marked.count(_MARK)
        self._fields = dict.fromkeys(fields_named(settings), "key")
        self._method = settings.sent_method
        self._content_type, body = _content(settings)
        self._body = _compiled(body, secrets or {})
        compiled = {name: _compiled(text, {}) for name, text in settings.headers.items()}
        self._headers = {name: text for name, text in compiled.items() if isinstance(text, tuple)}
        self.is_repeatable = settings.is_repeatable
        self._is_plain = self._method == "GET" and body is None and not self._headers
        self._is_raw = settings.body is not None
        self._is_json = settings.json is not None

    @property
    def sample(self) -> Target | None:
        """The target for some key; None without a template, because then keys can have any host."""
        return None if self._parts is None else self.target(["key"], KeyContext(fields=self._fields))

    def build(self, keys: Sequence[str], context: KeyContext = NO_CONTEXT) -> tuple[Target, Payload]:
        """Return what is sent for these keys; `context` is that of the first. Raises InvalidUrl, as `target` does.

        A page of a list behind the first is asked for like the list's key, with the context's `params` in the request;
        without them its key is the URL to get.
        """
        target = self.target(keys, context)
        if self._is_plain and not context.list_key:
            return target, GET
        by_url = context.list_key and not context.params
        values = _Values([context.list_key] if context.list_key else keys, self._joint, context)
        ours = not by_url or self._base is None or may_carry_credentials(self._base, target)
        headers = tuple((name, values.header(name, text)) for name, text in self._headers.items()) if ours else ()
        if by_url:
            return target, Payload(headers=headers, with_credentials=ours)
        try:
            body = None if self._body is None else self._built_body(values, context.params)
        except UnicodeEncodeError:
            raise InvalidUrl("has a field that is not valid UTF-8") from None
        repeatable = self.is_repeatable
        return target, Payload(self._method, body, self._content_type, headers, is_repeatable=repeatable)

    def target(self, keys: Sequence[str], context: KeyContext = NO_CONTEXT) -> Target:
        """Return the target of one request for these keys: percent-encoded, and joined by the encoded separator.

        Raises InvalidUrl when there is no template and the key is no URL, for a key that is a segment of dots, and for
        one without a field that the template names.
        """
        if context.list_key:
            if not context.params:
                return self._target_of_url(keys[0])
            first = self.target([context.list_key], KeyContext(fields=context.fields))
            return _with_params(first, {name: context.params[name] for name in self._in_query(first, context.params)})
        if self._parts is None:
            return self._target_of_url(keys[0])
        if self._ends is None:
            return self._target_of_fields(self._parts, _Values(keys, self._joint, context))
        key = _quoted(keys[0]) if len(keys) == 1 else self._separator.join(map(_quoted, keys))
        if self.parsed is None or key[:1] in ("", "."):
            head, tail = self._ends
            return self._checked_target(f"{head}{key}{tail}", len(key))
        origin, path, tail = self.parsed
        return Target(origin, f"{path}{key}{tail}")

    def _target_of_url(self, key: str) -> Target:
        # The source has checked each key, but a block may come from another program.
        if (len(key) > QUICK_CHARACTERS or not key.isprintable()) and (reason := self._rule.reason(key)):
            raise InvalidUrl(reason)
        return parse(key)

    def _target_of_fields(self, parts: Parts, values: _Values) -> Target:
        places = (part for part in parts if isinstance(part, Placeholder))
        try:
            written = {p: quote(values.of(p), safe="/" if p.form == "path" else "") for p in places}
        except UnicodeEncodeError:
            raise InvalidUrl("has a field that is not valid UTF-8") from None
        pieces = [written[part] if isinstance(part, Placeholder) else part for part in parts]
        length = sum(len(written[part]) for part in parts if isinstance(part, Placeholder))
        return self._checked_target("".join(pieces), length)

    def _checked_target(self, url: str, length: int) -> Target:
        """The target of a URL in which the values of the places have this length."""
        target = parse(url)
        if len(target.path) < self._around + length:
            raise InvalidUrl("would be . or .. in the path of its URL, and so stand for another page")
        return target

    def _in_query(self, target: Target, params: Mapping[str, Any]) -> list[str]:
        """The parameters that stand in the query; with `json` or `form` the others stand there."""
        if self._body is None or self._is_raw:
            return list(params)
        found = {_name_of(piece) for piece in target.path.partition("?")[2].split("&")}
        return [name for name in params if name in found]

    def _built_body(self, values: _Values, params: Mapping[str, Any]) -> bytes:
        if self._is_raw:
            return values.text(self._body).encode()
        body = values.filled(self._body, self._is_json)
        if params:
            first = self._base if self._base is not None else self._target_of_url(values.keys[0])
            in_query = self._in_query(first, params)
            for name in params:
                if name not in in_query:
                    _put(body, name, params[name])
        if self._is_json:
            return msgspec.json.encode(body)
        return urlencode({name: _plain(value) for name, value in body.items()}, doseq=True).encode()


def login_request(login: LoginSettings, secrets: Mapping[str, str], headers: Pairs) -> tuple[Target, Payload]:
    """What is sent to log in; `headers` are those of the login with their secrets filled in."""
    settings = RequestSettings(url=login.url, method="POST", json=login.json, form=login.form, headers=login.headers)
    target, payload = Template(settings, secrets).build([""])
    return target, replace(payload, headers=headers)


class _Values:
    """What the places in texts of `[request]` stand for in one request."""

    def __init__(self, keys: Sequence[str], joint: str, context: KeyContext) -> None:
        self.keys = keys
        self._joint = joint
        self._fields = context.fields

    def of(self, place: Placeholder) -> str:
        """The value of a place; the keys are joined by the separator. Raises InvalidUrl."""
        value = self._joint.join(self.keys) if place.name in KEY_NAMES else self._fields.get(place.name)
        if value is None:
            raise InvalidUrl(f"has no field {place.name!r}, which [request] names")
        return _checked_number(value, place.name) if place.form == "number" else value

    def text(self, parts: str | Parts) -> str:
        """A compiled text with its values."""
        return parts if isinstance(parts, str) else "".join(p if isinstance(p, str) else self.of(p) for p in parts)

    def header(self, name: str, parts: Parts) -> str:
        """The value of a header. Raises InvalidUrl for one that would be another header, or none."""
        value = self.text(parts)
        if not _HEADER_VALUE.fullmatch(value):
            raise InvalidUrl(f"has a value for the header {name} with a character that cannot stand there")
        return value

    def filled(self, node: Any, as_json: bool) -> Any:
        """A compiled value with its values; in JSON a text that is one place has the type of its value."""
        if isinstance(node, dict):
            return {name: self.filled(part, as_json) for name, part in node.items()}
        if isinstance(node, list):
            return [self.filled(part, as_json) for part in node]
        if not isinstance(node, tuple):
            return node
        if len(node) == 1 and as_json:
            place = node[0]
            texts: Sequence[Any] = self.keys if place.name == "keys" else [self.of(place)]
            if place.form == "number":  # which stands there as it is written, with all of its digits
                texts = [msgspec.Raw(_checked_number(one, place.name).encode()) for one in texts]
            return list(texts) if place.name == "keys" else texts[0]
        return self.text(node)


def _content(settings: RequestSettings) -> tuple[str | None, Any]:
    """The media type and the template of the body; no media type when a header of the job says it."""
    has_type = any(name.lower() == "content-type" for name in settings.headers)
    for kind, body in (
        ("application/json", settings.json),
        ("application/x-www-form-urlencoded", settings.form),
        ("text/plain; charset=utf-8", settings.body),
    ):
        if body is not None:
            return None if has_type else kind, body
    return None, None


def _compiled(node: Any, secrets: Mapping[str, str]) -> Any:
    """A value of `[request]` with its secrets filled in, and with a tuple of parts for each text that has places."""
    if isinstance(node, dict):
        return {name: _compiled(part, secrets) for name, part in node.items()}
    if isinstance(node, list | tuple):
        return [_compiled(part, secrets) for part in node]
    if not isinstance(node, str):
        return node
    parts = [
        secrets.get(part.name, f"${{{part.name}}}") if isinstance(part, Placeholder) and part.is_secret else part
        for part in parts_of(node)
    ]
    texts = [part for part in parts if isinstance(part, str)]
    return "".join(texts) if len(texts) == len(parts) else tuple(parts)


def _put(body: Any, name: str, value: Any) -> None:
    """Replace a member of a body; `variables.after` is a member of the member `variables`. Raises InvalidUrl."""
    *path, last = [name] if isinstance(body, dict) and name in body else name.split(".")
    for step in path:
        body = body.setdefault(step, {}) if isinstance(body, dict) else None
    if not isinstance(body, dict):
        raise InvalidUrl(f"cannot be asked for: {name!r} is no place in the body of [request]")
    body[last] = value


def _with_params(target: Target, params: Mapping[str, Any]) -> Target:
    """The target with these parameters in its query in the place of those of their names; None takes one out."""
    path, _, query = target.path.partition("?")
    pieces = [piece for piece in query.split("&") if piece]
    for name, value in params.items():
        at = next((index for index, piece in enumerate(pieces) if _name_of(piece) == name), len(pieces))
        written = pieces[at].partition("=")[0] if at < len(pieces) else quote(name, safe="")
        values = value if isinstance(value, list | tuple) else [] if value is None else [value]
        rest = [piece for piece in pieces[at:] if _name_of(piece) != name]
        pieces[at:] = [*(f"{written}={quote(str(_plain(one)), safe='')}" for one in values), *rest]
    return Target(target.origin, f"{path}?{'&'.join(pieces)}" if pieces else path)


def _name_of(piece: str) -> str:
    return unquote_plus(piece.partition("=")[0])


def _plain(value: Any) -> Any:
    """A value as a form or a query writes it."""
    return str(value).lower() if isinstance(value, bool) else value


def _checked_number(value: str, name: str) -> str:
    if not _NUMBER.fullmatch(value):
        raise InvalidUrl(f"is no number, or has one that is none in the field {name!r}")
    return value


def _quoted(key: str) -> str:
    return key if key.isascii() and key.isalnum() else quote(key, safe="")  # most need nothing


def _ends(parts: Parts) -> tuple[str, str] | None:
    """What stands before and after the key, if a template has nothing else in it."""
    match parts:
        case (str(head), Placeholder(name="key" | "keys", form=""), *tail):
            if not tail or (len(tail) == 1 and isinstance(tail[0], str)):
                return head, "".join(map(str, tail))
    return None


def _parse_once(head: str, tail: str) -> tuple[Origin, str, str] | None:
    """`Template.parsed` of what stands before and after the key in the template.

    What the standard does to a path or a query, it does to each character alone, and to nothing that `quote` leaves.
    Only a whole segment of dots means something else, and such a key is parsed.
    """
    if _HALF_ENCODED.search(head):
        return None
    origin, path = parse(f"{head}{_MARK}{tail}")
    before, mark, after = path.partition(_MARK)
    return (origin, before, after) if mark and _MARK not in head + tail else None
