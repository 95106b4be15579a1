"""Settings in which runs differ."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MISSING = "not set"
_ROOT = "config"
_MOST = 120  # characters of a value that are shown
_BEFORE = 20  # of these, characters before the first difference of values that begin alike


@dataclasses.dataclass(frozen=True)
class Setting:
    """A setting in which runs differ.

    Attributes:
      name: ``config.a.b``.
      values: of each run, as they are shown: ``not set`` where a run has none.
    """

    name: str
    values: Sequence[str]


def settings_that_differ(configs: Sequence[Mapping[str, Any]]) -> list[Setting]:
    """All settings, and only those, whose values are not the same in all configurations; in the order in which the
    configurations have them."""
    flat = [dict(_leaves(_ROOT, config)) for config in configs]
    names = dict.fromkeys(name for leaves in flat for name in leaves)
    settings = []
    for name in _in_order(names):
        values = [leaves.get(name, MISSING) for leaves in flat]
        if len(set(values)) > 1:
            settings.append(Setting(name, _shown(values)))
    return settings


def _leaves(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Paths and values of the leaves of nested mappings; an empty mapping is a leaf."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves(f"{name}.{key}", item)
    else:
        yield name, _written(value)


def _written(value: Any) -> str:
    """A value as JSON; whole numbers are the same with and without a point."""
    return json.dumps(_plain(value), ensure_ascii=False, sort_keys=True)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _in_order(names: Mapping[str, Any]) -> list[str]:
    """Names by section; sections, and the names in each, in the order of their first occurrence."""
    sections: dict[str, list[str]] = {}
    for name in names:
        sections.setdefault(".".join(name.split(".")[:2]), []).append(name)
    return [name for section in sections.values() for name in section]


def _shown(values: Sequence[str]) -> list[str]:
    """Values cut so that they still differ."""
    columns = enumerate(zip(*values, strict=False))
    first = next((index for index, letters in columns if len(set(letters)) > 1), 0)
    start = max(0, first - _BEFORE) if first >= _MOST else 0
    end = start + _MOST
    return [f"{'...' * bool(start)}{value[start:end]}{'...' * (len(value) > end)}" for value in values]
