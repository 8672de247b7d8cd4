"""What the models of the job file's sections are made of, and reading one section of a document into its model.

msgspec says whether a section is right. Which key is wrong is then found by converting each key alone, so that our
messages do not depend on the texts of msgspec's.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Annotated, Any, TypeAlias, TypeVar

import msgspec
from msgspec import Meta, Struct, inspect

from coordinator.errors import NotYet, UsageError

RATE_FORMS = 'write requests a second like 50, or "50/s", "5000/h", ["50/s", "5000/h"], "auto", "none"'
HEADER_RULE = "must be a header name with a text in one line"
COOKIE_RULE = "must be a cookie's name with a text that has no space, ;"

# Patterns for `re.fullmatch`; the JSON Schema has them too, so they mean the same in Python and in ECMA-262.
RUN_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
CORPUS_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}"
FUNCTION = r"[A-Za-z_][\w.]*:[A-Za-z_]\w*"
UPSTREAM_HOST = r"(?:\[[0-9a-fA-F:.]+\]|[^\s:@/?#\[\]]+)(?::(?:[0-9]{1,5}|\*))?"
UPSTREAM_PATH = r"[^\s#]+"
RATE = r"([0-9]+(?:\.[0-9]+)?)(?:\s*/\s*(s|min|m|h|d))?"
IDENTIFIER = r"[a-z_][a-z0-9_]{0,39}"
DURATION = r"[0-9]{1,9}(?:\.[0-9]{1,9})? ?(?:ms|s|min|h)"
AGE_FORMS = 'write a time like "90d", "12h" or "30min"'
AGE = r"[0-9]{1,9}(?:\.[0-9]{1,9})? ?(?:s|min|h|d)"
BYTES = r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?(KB|MB|GB)"
UNITS = {"KB": 1_000, "MB": 1_000_000, "GB": 1_000_000_000}
MAX_FILL_SECONDS = 600
MAX_WAIT_SECONDS = 86_400
# Where MediaWiki says what it calls the titles that it was asked for.
MEDIAWIKI_ALIASES = ("query.normalized", "query.converted", "query.redirects")

_NUMBER_RATE = Meta(gt=0, le=1_000_000)
_TEXT_RATE = Meta(extra_json_schema={"pattern": rf"^(?:none|auto|\s*{RATE}\s*(?:,\s*{RATE}\s*)*)$"})
DURATION_TEXT = Meta(pattern=f"^{DURATION}$")
_PART_RATE = Meta(extra_json_schema={"pattern": rf"^\s*{RATE}\s*$"})
Rate: TypeAlias = (
    Annotated[float, _NUMBER_RATE]
    | Annotated[str, _TEXT_RATE]
    | Annotated[tuple[Annotated[float, _NUMBER_RATE] | Annotated[str, _PART_RATE], ...], Meta(min_length=1)]
)


def text(description: str, example: str, pattern: str | None = None, **extra: str) -> Meta:
    """The Meta of a key with a text, which must not be empty."""
    schema = None if pattern is None else {"pattern": pattern}
    return Meta(min_length=1, description=description, examples=[example], extra_json_schema=schema, extra=extra)


def value(description: str, example: Any, **extra: str) -> Meta:
    """The Meta of a key without bounds."""
    return Meta(description=description, examples=[example], extra=extra)


def number(description: str, example: float, least: float, most: float, **extra: str) -> Meta:
    """The Meta of a key with a number from `least` to `most`."""
    return Meta(description=description, examples=[example], ge=least, le=most, extra=extra)


class Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One section of the job file."""


SectionModel = TypeVar("SectionModel", bound=Section)

# Keys that are planned, but are not in this version. A job that has one is refused with its own message.
PLANNED_KEYS = {
    "source": ("table",),
    "parse": ("records", "columns", "links"),
    "request": (),
    "run": (),
    "retry": ("in_place",),
    "store": ("parquet",),
}


def bytes_of(size: str) -> int:
    """A size like "256MB" in bytes, 0 for a text that is none."""
    found = re.fullmatch(BYTES, size)
    return 0 if found is None else int(float(found[1]) * UNITS[found[2]])


def read_section(model: type[SectionModel], name: str, values: Any) -> SectionModel:
    """The model of the section `name`, from its `values`. Raises UsageError, and NotYet for what is planned."""
    if not isinstance(values, Mapping):
        raise UsageError(f"job: [{name}] is no table; write [{name}] and its keys below it")
    try:
        return msgspec.convert(values, model)
    except msgspec.ValidationError:
        _refuse_values(model, name, values)
        refuse_unknown(model, name, values)
        raise


def refuse_unknown(model: type[Section], name: str, values: Mapping[str, Any]) -> None:
    """Raise UsageError for the first key that the model does not have, or NotYet when that key is planned."""
    known = model.__struct_encode_fields__
    for key in values:
        if key in known:
            continue
        if key in PLANNED_KEYS.get(name, ()):
            raise NotYet(f"job: [{name}] {key}: not yet in this version; leave it out")
        near = difflib.get_close_matches(key, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
        raise UsageError(f"job: [{name}] has no key {key!r}; {hint}")


def type_and_extra(kind: inspect.Type) -> tuple[inspect.Type, Mapping[str, str]]:
    """A field's type without "or null" and without its Meta, and the `extra` of that Meta."""
    extra: Mapping[str, str] = {}
    while True:
        if isinstance(kind, inspect.Metadata):
            extra = kind.extra or extra
            kind = kind.type
        elif isinstance(kind, inspect.UnionType) and isinstance(kind.types[-1], inspect.NoneType):
            rest = kind.types[:-1]
            kind = rest[0] if len(rest) == 1 else inspect.UnionType(rest)
        else:
            return kind, extra


def _refuse_values(model: type[Section], name: str, values: Mapping[str, Any]) -> None:
    """Raise UsageError or NotYet for the first key whose value the model does not take."""
    for field in msgspec.structs.fields(model):
        key = field.encode_name
        if key not in values:
            continue
        try:
            msgspec.convert(values[key], field.type)
        except msgspec.ValidationError:
            kind, extra = type_and_extra(inspect.type_info(field.type))
            if isinstance(kind, inspect.StructType) and issubclass(kind.cls, Section):
                read_section(kind.cls, f"{name}.{key}", values[key])
            if "not_yet" in extra:
                raise NotYet(f"job: [{name}] {key}: {extra['not_yet']}") from None
            if isinstance(kind, inspect.DictType) and isinstance(values[key], Mapping):
                wrong = next(entry for entry in values[key] if not _converts({entry: values[key][entry]}, field.type))
                raise UsageError(f"job: [{name}] {key}: {wrong!r} {extra['each']}") from None
            raise UsageError(f"job: [{name}] {key}{_fault(kind, extra, values[key])}") from None


def _converts(value: Any, kind: Any) -> bool:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return False
    return True


def _fault(kind: inspect.Type, extra: Mapping[str, str], value: Any) -> str:
    """Why the value is not of this type, as the rest of a message that begins with the key."""
    match kind:
        case inspect.IntType() | inspect.FloatType():
            whole = isinstance(kind, inspect.IntType)
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
                return f" is {value!r}; it must be {'a whole number' if whole else 'a number'}"
            share = f"; {value:g} % is written {value / 100:g}" if kind.le == 1.0 and 1 < value <= 100 else ""
            return f" is {value}; it must be from {kind.ge} to {kind.le}{share}"
        case inspect.StrType():
            if value == "":
                return " is empty; write a text, or leave it out"
            return f" is {value!r}; it must be text in quotes"
        case inspect.BoolType():
            return f" is {value!r}; write true or false"
        case inspect.VarTupleType():
            return (
                " must be a list of texts" if isinstance(value, list) else f" is {value!r}; it must be a list of texts"
            )
        case inspect.DictType():
            return f" is {value!r}; it must be a table"
    return f" is {value!r}; {extra['write']}"


def part_of(share: float, count: int) -> Fraction:
    """Pure: this share of so many, of the share as it was written: 0.29 of 100 are 29, and as floats a little less."""
    return Fraction(str(share)) * count
