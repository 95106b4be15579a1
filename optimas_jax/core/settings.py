"""Settings as people read about them: every field of a configuration's dataclasses, with its meaning.

The meanings stand in the docstrings of the dataclasses, below ``Attributes:``, one field or several to a paragraph.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from optimas_jax.core.json_text import shown

_ENTRY = re.compile(r"(\w+(?:, \w+)*): ?(.*)")
_TYPES = {str: "text", bool: "bool", int: "int", float: "float"}
REQUIRED = dataclasses.MISSING  # the default of a field without one


@dataclasses.dataclass(frozen=True)
class Setting:
    """A field that has a value.

    Attributes:
      path: from the configuration on, such as ``optimize.gate.kind``.
      type: in words, such as ``int`` or ``list of text``.
      allowed: values, in words; "" for all of the type.
      default: ``REQUIRED`` if there is none.
      value: in a configuration; the default where there is no configuration.
      meaning: a text with ``names`` between double backquotes.
    """

    path: str
    type: str
    allowed: str
    default: Any
    value: Any
    meaning: str


@dataclasses.dataclass(frozen=True)
class Section:
    """A dataclass of a configuration.

    Attributes:
      path: "" for the configuration itself.
      meaning: of the dataclass: its docstring without its fields.
      role: what the dataclass around it says of this field.
      settings: its fields that are no sections themselves.
    """

    path: str
    meaning: str
    role: str
    settings: tuple[Setting, ...]


def sections(cls: type, config: Any = REQUIRED, path: str = "") -> list[Section]:
    """A dataclass and those in it, each before its own.

    Args:
      config: an instance, for its values; without it, those are the defaults.
      path: of the dataclass.

    Returns:
      Sections in the order of the fields. A field of any type is a section if ``config`` has a dataclass there, and is
      left out if there is no ``config``.
    """
    return list(_sections(cls, config, _no_defaults(cls), path, ""))


def meanings(cls: type) -> dict[str, str]:
    """The meaning of every field that the docstrings of a dataclass and its bases explain."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        names: list[str] = []
        for line in _attributes(base):
            entry = _ENTRY.fullmatch(line.strip()) if line.startswith("  ") and not line.startswith("   ") else None
            if entry is not None:
                names = entry[1].split(", ")
                found |= dict.fromkeys(names, entry[2])
            elif names:
                found |= {name: f"{found[name]} {line.strip()}".strip() for name in names}
    return {field.name: found[field.name] for field in dataclasses.fields(cls) if field.name in found}


def _sections(cls: type, config: Any, defaults: Any, path: str, role: str) -> Iterator[Section]:
    """``defaults``: by field, or an instance that has them."""
    explained, within, settings = meanings(cls), [], []
    for field, hint in zip(dataclasses.fields(cls), _hints(cls), strict=True):
        where = f"{path}.{field.name}" if path else field.name
        default = defaults[field.name] if isinstance(defaults, Mapping) else getattr(defaults, field.name)
        value = default if config is REQUIRED else getattr(config, field.name)
        kind = type(value) if hint is Any else hint
        if dataclasses.is_dataclass(kind):
            inner = default if type(default) is kind else _no_defaults(kind)
            within.append(
                (kind, REQUIRED if config is REQUIRED else value, inner, where, explained.get(field.name, ""))
            )
        elif hint is not Any:
            words = _words(hint)
            settings.append(Setting(where, *words, default, value, explained.get(field.name, "")))
    yield Section(path, _head(cls), role, tuple(settings))
    for one in within:
        yield from _sections(*one)


def _hints(cls: type) -> list[Any]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return [hints[field.name] for field in dataclasses.fields(cls)]


def _no_defaults(cls: Any) -> Mapping[str, Any]:
    """Defaults of the fields of a dataclass."""
    return {
        field.name: field.default if field.default_factory is REQUIRED else field.default_factory()
        for field in dataclasses.fields(cls)
    }


def _words(hint: Any) -> tuple[str, str]:
    """A type and its allowed values in words."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _words(inner[0])[0], str(inner[1])
    if origin is Literal:
        return _TYPES.get(type(inner[0]), type(inner[0]).__name__), ", ".join(map(repr, inner))
    if origin is tuple:
        kind, allowed = _words(inner[0])
        return f"list of {kind}", f"each {allowed}" if allowed else ""
    if isinstance(origin, type) and issubclass(origin, Mapping):
        kind, allowed = _words(inner[1])
        return f"{kind} by name", f"each {allowed}" if allowed else ""
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_words(one)[0] for one in inner), ""
    return _TYPES.get(hint, getattr(hint, "__name__", str(hint))), ""


def _doc(cls: type) -> str:
    return inspect.cleandoc(cls.__dict__.get("__doc__") or "")


def _head(cls: type) -> str:
    """The docstring of a dataclass up to its fields; a dataclass without one has its signature there."""
    head = _doc(cls).partition("\nAttributes:")[0].strip()
    return "" if head.startswith(f"{cls.__name__}(") else head


def _attributes(cls: type) -> list[str]:
    """Lines of a docstring below ``Attributes:``, up to the next heading."""
    lines = _doc(cls).partition("\nAttributes:\n")[2].splitlines()
    end = next((at for at, line in enumerate(lines) if line and not line.startswith(" ")), len(lines))
    return [line for line in lines[:end] if line.strip()]


def value_text(value: Any, most: int = 80) -> str:
    """A value as it is shown: as a flag takes it where that is plain."""
    if value is REQUIRED:
        return "required"
    if isinstance(value, Mapping):
        return shown(dict(value), most)
    return shown(list(value) if isinstance(value, tuple) else value, most)
