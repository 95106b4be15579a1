"""Settings as pages and commands show them: every field of a configuration's dataclasses, with its meaning.

The meanings are read from the docstrings of the dataclasses, below ``Attributes:``, where each entry explains one field
or several.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from optimas_jax.core.text.json_text import shown

_ENTRY = re.compile(r"(\w+(?:, \w+)*): ?(.*)")
_TYPES = {str: "text", bool: "bool", int: "int", float: "float"}
REQUIRED = dataclasses.MISSING  # the default of a field without one


@dataclasses.dataclass(frozen=True)
class Setting:
    """A field of a configuration that holds a value, not a section.

    Attributes:
      path: names from the configuration to the field, such as ``optimize.gate.kind``.
      type: name of its type, such as ``int`` or ``list of text``.
      allowed: description of the allowed values; "" if all values of the type are.
      default: ``REQUIRED`` if there is none.
      value: its value in a configuration; the default if there is no configuration.
      meaning: its explanation, with ``names`` between double backquotes.
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
      role: meaning of its field in the dataclass around it.
      settings: its fields that are not sections.
    """

    path: str
    meaning: str
    role: str
    settings: tuple[Setting, ...]


def sections(cls: type, config: Any = REQUIRED, path: str = "") -> list[Section]:
    """The section of a dataclass, followed by the sections of the dataclasses in its fields.

    Args:
      config: an instance, from which values are read; without it the values are the defaults.
      path: of the dataclass.

    Returns:
      Sections in the order of the fields. A field of any type is a section if ``config`` has a dataclass there, and is
      left out if there is no ``config``.
    """
    return list(_sections(cls, config, _no_defaults(cls), path, ""))


def meanings(cls: type) -> dict[str, str]:
    """The meaning of every field that the docstrings of a dataclass and its bases explain."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        names: list[str] = []
        for line in _attributes(base):
            entry = _ENTRY.fullmatch(line.strip()) if line.startswith("  ") and not line.startswith("   ") else None
            if entry is not None:
                names = entry[1].split(", ")
                texts |= dict.fromkeys(names, entry[2])
            elif names:
                texts |= {name: f"{texts[name]} {line.strip()}".strip() for name in names}
    return {field.name: texts[field.name] for field in dataclasses.fields(cls) if field.name in texts}


def _sections(cls: type, config: Any, defaults: Any, path: str, role: str) -> Iterator[Section]:
    """Yields the sections of ``sections``; ``defaults``: default by field, or an instance that has them."""
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
    for arguments in within:
        yield from _sections(*arguments)


def _hints(cls: type) -> list[Any]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return [hints[field.name] for field in dataclasses.fields(cls)]


def _no_defaults(cls: Any) -> Mapping[str, Any]:
    """Default of each field of a dataclass; ``REQUIRED`` for a field without one."""
    return {
        field.name: field.default if field.default_factory is REQUIRED else field.default_factory()
        for field in dataclasses.fields(cls)
    }


def _words(hint: Any) -> tuple[str, str]:
    """Name of a type, and description of its allowed values."""
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
        return " or ".join(_words(option)[0] for option in inner), ""
    return _TYPES.get(hint, getattr(hint, "__name__", str(hint))), ""


def _doc(cls: type) -> str:
    return inspect.cleandoc(cls.__dict__.get("__doc__") or "")


def _head(cls: type) -> str:
    """The docstring of a dataclass up to its fields; "" for the signature that Python gives a dataclass without a
    docstring."""
    head = _doc(cls).partition("\nAttributes:")[0].strip()
    return "" if head.startswith(f"{cls.__name__}(") else head


def _attributes(cls: type) -> list[str]:
    """Lines of a docstring below ``Attributes:``, up to the next heading."""
    lines = _doc(cls).partition("\nAttributes:\n")[2].splitlines()
    end = next((at for at, line in enumerate(lines) if line and not line.startswith(" ")), len(lines))
    return [line for line in lines[:end] if line.strip()]


def value_text(value: Any, most: int = 80) -> str:
    """A value as it is shown: for plain values, as a flag takes it."""
    if value is REQUIRED:
        return "required"
    if isinstance(value, Mapping):
        return shown(dict(value), most)
    return shown(list(value) if isinstance(value, tuple) else value, most)
