"""Typed values of users' functions as plain data, which records, tapes and prompts hold, and back."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import math
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any

from optimas_jax.core.text.json_text import MOST_NESTED
from optimas_jax.core.types import StopRun, valid_text

_OF_RECORDS = 20  # levels of nesting that records add around a value
_RECORDED = "texts, numbers, true and false, None, lists, dicts, dataclasses and pydantic models can be recorded"


class PlainError(StopRun):
    """A value that cannot be recorded; the message says where it is and what can be."""


def to_plain(value: Any, where: str) -> Any:
    """JSON-like copy of a value: dataclasses and pydantic models become dicts, tuples lists, enums their values, arrays
    and scalars of NumPy lists and numbers. Texts become valid (``core.types.valid_text``).

    Args:
      where: names the value in errors.

    Raises:
      PlainError: for any other type, NaN, infinity, numbers that no float can hold, or a value that is nested too deep.
    """
    try:
        return _plain(value, where, 0)
    except RecursionError:  # of a dataclass or a model, by its own methods
        raise PlainError(f"{where} is nested too deep, or holds itself") from None


def _plain(value: Any, where: str, depth: int) -> Any:
    if depth > MOST_NESTED - _OF_RECORDS:
        raise PlainError(f"{where[:100]}... is nested more than {MOST_NESTED - _OF_RECORDS} deep, or holds itself")
    if isinstance(value, enum.Enum):
        return _plain(value.value, where, depth + 1)
    if isinstance(value, str):
        return valid_text(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        if abs(value) > sys.float_info.max:
            raise PlainError(f"{where} is a whole number of {value.bit_length()} bits, which no float can hold")
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise PlainError(f"{where} is {value}, expected a finite number")
        return value
    if isinstance(value, Mapping):
        odd = [key for key in value if not isinstance(key, str)]
        if odd:
            raise PlainError(f"{where} has the key {odd[0]!r}, expected texts as keys")
        return {_plain(key, where, depth): _plain(item, f"{where}[{key!r}]", depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{index}]", depth + 1) for index, item in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {field.name: _plain(getattr(value, field.name), f"{where}.{field.name}", depth + 1) for field in fields}
    if dump := getattr(value, "model_dump", None):  # pydantic
        return _plain(dump(mode="json"), where, depth + 1)
    if hasattr(value, "dtype") and (tolist := getattr(value, "tolist", None)):  # NumPy
        return _plain(tolist(), where, depth + 1)
    raise PlainError(f"{where} is of type {type(value).__name__}: {_way_out(value)}")


def _way_out(value: Any) -> str:
    """Advice for a value that cannot be recorded."""
    if inspect.isawaitable(value):
        if inspect.iscoroutine(value):
            value.close()  # otherwise Python warns as well
        return "await it"
    if inspect.isgenerator(value) or inspect.isasyncgen(value):
        return "it has a yield; return a list"
    return _RECORDED


def check_kind(kind: Any, where: str) -> None:
    """Refuses a declared type whose values can never be recorded. If only some can, each value is checked when it is
    recorded.

    Raises:
      PlainError: names the type.
    """
    if not _can_be_plain(kind):
        raise PlainError(f"{where} is declared as {kind.__name__ if isinstance(kind, type) else kind}: {_RECORDED}")


def _can_be_plain(kind: Any) -> bool:
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return any(map(_can_be_plain, typing.get_args(kind)))
    if origin is typing.Annotated:
        return _can_be_plain(typing.get_args(kind)[0])
    if origin in (list, tuple, dict):
        return all(_can_be_plain(part) for part in typing.get_args(kind) if part is not ...)
    if origin is not None:
        return isinstance(origin, type) and _class_can(origin) if origin is not typing.Literal else True
    return _class_can(kind) if isinstance(kind, type) else True


def _class_can(kind: type) -> bool:
    """Whether values of a class, or of one of its subclasses, may be recorded."""
    known = (type(None), str, bool, int, float, enum.Enum, Mapping, list, tuple)
    if kind is object or inspect.isabstract(kind) or getattr(kind, "_is_protocol", False) or issubclass(kind, known):
        return True
    if dataclasses.is_dataclass(kind) or any(hasattr(kind, name) for name in ("model_dump", "tolist")):
        return True
    return any(map(_class_can, type.__subclasses__(kind)))


def from_plain(kind: Any, data: Any) -> Any:
    """Plain data as a declared type that has dataclasses, pydantic models or enums in it; for other types the data
    itself.

    Raises:
      pydantic.ValidationError: the data is of another type.
    """
    if not _has_structure(kind):
        return data
    import pydantic

    return pydantic.TypeAdapter(kind).validate_python(data)


def _has_structure(kind: Any) -> bool:
    """Whether a type is, or holds, a dataclass, a pydantic model or an enum."""
    if any(_has_structure(part) for part in typing.get_args(kind)):
        return True
    if not isinstance(kind, type):
        return False
    return dataclasses.is_dataclass(kind) or hasattr(kind, "model_validate") or issubclass(kind, enum.Enum)


def to_fields(name: str, value: Any, where: str) -> dict[str, Any]:
    """Fields of a result: the fields of a dict, dataclass or model; any other result is a single field ``name``. The
    inverse of ``from_fields``."""
    plain = to_plain(value, where)
    return plain if isinstance(plain, dict) and plain and set(plain) != {name} else {name: plain}


def from_fields(name: str, fields: Mapping[str, Any], kind: Any = None) -> Any:
    """Result of a function, from its fields."""
    return from_plain(kind, fields[name] if set(fields) == {name} else dict(fields))
