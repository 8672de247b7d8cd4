"""Reads one section of a job document into its model. A wrong, unknown or planned key is an error in one line.

msgspec says whether a section is right. Which key is wrong is then found by converting each key alone, so that our
messages do not depend on the texts of msgspec's.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from coordinator.errors import NotYet, UsageError
from crawler.job.models import Section

SectionModel = TypeVar("SectionModel", bound=Section)

# Keys that are planned, but are not in this version. A job that has one is refused with its own message.
PLANNED_KEYS = {
    "source": ("table", "query"),
    "parse": ("records", "columns", "links"),
    "request": ("method", "body"),
    "run": (),
    "retry": ("in_place",),
    "store": ("parquet", "schema"),
}


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
            if "not_yet" in extra:
                raise NotYet(f"job: [{name}] {key}: {extra['not_yet']}") from None
            raise UsageError(f"job: [{name}] {key}{_fault(kind, extra, values[key])}") from None


def _fault(kind: inspect.Type, extra: Mapping[str, str], value: Any) -> str:
    """Why the value is not of this type, as the rest of a message that begins with the key."""
    match kind:
        case inspect.IntType() | inspect.FloatType():
            whole = isinstance(kind, inspect.IntType)
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
                return f" is {value!r}; it must be {'a whole number' if whole else 'a number'}"
            return f" is {value}; it must be from {kind.ge} to {kind.le}"
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
        case inspect.DictType() if isinstance(value, Mapping):
            wrong = next(entry for entry, content in value.items() if not isinstance(content, str))
            return f": {wrong!r} {extra['each']}"
        case inspect.DictType():
            return f" is {value!r}; it must be a table"
    return f" is {value!r}; {extra['write']}"
