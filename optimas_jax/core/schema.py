"""Configurations as frozen dataclasses: conversion from and to plain data, and ranges of numbers.

Plain data are the contents of a configuration file, of JSON or of a grid. The type and the range of every field are
checked where the data enter. A range is declared with the field: ``epochs: PositiveInt = 4``.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

from optimas_jax.core.text.json_text import is_text, shown
from optimas_jax.core.text.nearest import did_you_mean

T = typing.TypeVar("T")


class ConfigError(ValueError):
    """A configuration that cannot be used; the message has the field, the value seen and the values allowed."""


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from ``low`` (included if ``closed``) to ``high`` (included); NaN is in no range."""

    low: float = -math.inf
    high: float = math.inf
    closed: bool = True

    def __contains__(self, value: float) -> bool:
        return (self.low <= value if self.closed else self.low < value) and value <= self.high

    def __str__(self) -> str:
        low = f"at least {self.low:g}" if self.closed else f"above {self.low:g}"
        return low if self.high == math.inf else f"{low} and at most {self.high:g}"


NonNegativeInt = Annotated[int, Range(0)]
PositiveInt = Annotated[int, Range(1)]
NonNegativeFloat = Annotated[float, Range(0)]
PositiveFloat = Annotated[float, Range(0, closed=False)]
Share = Annotated[float, Range(0, 1)]
PositiveShare = Annotated[float, Range(0, 1, closed=False)]


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain data of a dataclass; mappings are copied."""
    return {
        field.name: to_dict(value)
        if dataclasses.is_dataclass(value)
        else dict(value)
        if isinstance(value, Mapping)
        else value
        for field in dataclasses.fields(config)
        for value in [getattr(config, field.name)]
    }


def from_dict(cls: type[T], data: Mapping[str, Any], where: str = "config") -> T:
    """Builds a dataclass from nested plain data.

    Raises:
      ConfigError: for an unknown or missing field, or a value of another type or outside its range.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where} is {shown(data)}, expected the fields of {cls.__name__}")
    hints = typing.get_type_hints(cls, include_extras=True)
    names = {field.name: field for field in dataclasses.fields(cast(Any, cls))}
    unknown = sorted(key if isinstance(key, str) and is_text(key) else shown(key) for key in set(data) - set(names))
    if unknown:
        near = did_you_mean(unknown[0], names) or ";"
        raise ConfigError(f"{where} has no field {', '.join(unknown):.200}{near} it has {', '.join(names)}")
    values = {}
    for name, field in names.items():
        if name not in data:
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                raise ConfigError(f"{where}.{name} is missing")
            continue
        values[name] = _convert(hints[name], data[name], f"{where}.{name}")
    try:
        return cls(**values)
    except ValueError as error:
        raise ConfigError(f"{where}: {error!s:.500}") from error


def _convert(hint: Any, value: Any, where: str) -> Any:
    """``value`` as the type ``hint``: lists become tuples, whole numbers floats, mappings dataclasses."""
    if dataclasses.is_dataclass(hint):
        return from_dict(cast(type, hint), value, where)
    if hint is Any:
        return value
    origin = typing.get_origin(hint)
    if origin is Annotated:
        kind, allowed = typing.get_args(hint)
        value = _convert(kind, value, where)
        if value not in allowed:
            raise ConfigError(f"{where} is {shown(value)}, expected {allowed}")
        return value
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise ConfigError(f"{where} is {shown(value)}; allowed: {', '.join(map(repr, typing.get_args(hint)))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where} is {shown(value)}, expected a list")
        return tuple(_convert(typing.get_args(hint)[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} is {shown(value)}, expected names with values")
        kind = typing.get_args(hint)[1]
        return {_convert(str, key, where): _convert(kind, item, f"{where}.{key}") for key, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ConfigError(f"{where} is {shown(value)}, which no float can hold") from None
    if isinstance(value, str) and not is_text(value):
        raise ConfigError(f"{where} is {shown(value)}, which holds half of a character (a lone surrogate)")
    wrong = isinstance(hint, type) and not isinstance(value, hint)
    if wrong or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{where} is {shown(value)}, expected {hint.__name__}")
    return value
