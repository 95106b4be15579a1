"""The points of a sweep: which fields differ, with what values, and the resulting configurations."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import re
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optimas_jax.core.schema import ConfigError, to_dict
from optimas_jax.core.shipped import find
from optimas_jax.core.text.nearest import did_you_mean
from optimas_jax.core.types import digest
from optimas_jax.loop.config import RunConfig, parse_config, with_overrides

SEED = "seed"  # the axis over which means and intervals are taken
_LONGEST_NAME = 120  # of a folder
_RANGE = re.compile(r"(-?\d+):(-?\d+)")
Overrides = Mapping[str, Any]  # path of a field below ``RunConfig`` ("optimize.score") -> value


class SweepError(ValueError):
    """A sweep that cannot be run, with the reason and the way out."""


@dataclasses.dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Attributes:
      overrides: fields that differ from the sweep's configuration.
      config: the configuration with these overrides.
    """

    overrides: Overrides
    config: RunConfig

    @property
    def setting(self) -> dict[str, Any]:
        """All overrides but the seed."""
        return setting_of(self.overrides)

    @property
    def seed(self) -> int:
        return self.config.seed

    @property
    def name(self) -> str:
        """All overrides as the name of a folder, with their digest where the text alone is no valid or unique name."""
        text = _text(self.overrides) or "as-it-is"
        name = re.sub(r"[^\w.,=+-]+", "_", text)
        if name == text and len(name) <= _LONGEST_NAME:
            return name
        return f"{name[: _LONGEST_NAME - 21]}-{digest(dict(self.overrides))}"


@dataclasses.dataclass(frozen=True)
class EndedPoint:
    """A point that is read from a file (``sweep.record``): ``Point`` without its configuration."""

    overrides: Overrides
    name: str
    seed: int

    @property
    def setting(self) -> dict[str, Any]:
        """All overrides but the seed."""
        return setting_of(self.overrides)


def setting_of(overrides: Overrides) -> dict[str, Any]:
    """All overrides but the seed."""
    return {path: value for path, value in overrides.items() if path != SEED}


def read_points(base: Mapping[str, Any], sweep: str) -> tuple[Point, ...]:
    """The points of a sweep, in its order.

    Args:
      base: the configuration, as plain data that may be incomplete (``presets.command_line``).
      sweep: axes (``parse_axes``), or the path of a file with a function ``points()`` that returns overrides.

    Raises:
      SweepError: for a field that does not exist, a value that it does not take, or two points that are the same.
    """
    if not sweep.strip():
        raise SweepError(
            "name what differs: --sweep='optimize.gate.kind=strict,paired seed=0:3', or a file of configs/sweeps"
        )
    plain = to_dict(parse_config(base))
    if sweep.strip().endswith(".py"):
        rows = _points_of_file(find(sweep.strip()))
        for path, value in {path: value for row in rows for path, value in row.items()}.items():
            if isinstance(_field(plain, path), Mapping):
                raise SweepError(f"{path!r} is {value!r}, and has fields of its own: set {path}.NAME")
    else:
        rows = combinations(parse_axes(sweep, plain))
    points = [Point(row, _configured(base, row)) for row in rows]
    if not points:
        raise SweepError(f"the sweep {sweep!r} has no points")
    by_digest: dict[str, Point] = {}
    for point in points:
        first = by_digest.setdefault(digest(to_dict(point.config)), point)
        if first is not point:
            raise SweepError(f"the points {first.name} and {point.name} have the same configuration: leave one out")
    return tuple(points)


def parse_axes(text: str, plain: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Axes of a sweep from text: ``optimize.gate.kind=strict,paired seed=0:5``.

    Values are separated by commas, or by ``|`` where a value has commas itself
    (``optimize.proposers=demos|demos,opro``). ``0:5`` are the whole numbers from 0 to 4.

    Args:
      plain: the whole configuration, whose values give the types.

    Raises:
      SweepError: for an axis without values, a repeated one, or a field that does not exist or is a list.
    """
    axes: dict[str, list[Any]] = {}
    for axis in text.split():
        path, _, values = axis.partition("=")
        path = path.removeprefix("config.")
        if not values or path in axes:
            raise SweepError(
                f"{axis!r} is {'named twice' if path in axes else 'no axis'}: write fields with their values, such as "
                "--sweep='optimize.gate.kind=strict,paired seed=0:5'"
            )
        current = _field(plain, path)
        if isinstance(current, Mapping | list | tuple):
            kind = f"has fields of its own: {', '.join(current)}" if isinstance(current, Mapping) else "is a list"
            raise SweepError(f"{path!r} {kind}. A file in configs/sweeps can set it")
        integers = _RANGE.fullmatch(values)
        if integers and isinstance(current, int):
            axes[path] = list(range(int(integers[1]), int(integers[2])))
        else:
            axes[path] = [_value(path, part, current) for part in values.split("|" if "|" in values else ",")]
        if not axes[path]:
            raise SweepError(f"{axis!r} is an empty range: write FIRST:END, without the END")
    return axes


def combinations(axes: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every combination of values; the last axis changes fastest."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def _configured(base: Mapping[str, Any], overrides: Overrides) -> RunConfig:
    try:
        return parse_config(with_overrides(base, overrides))
    except ConfigError as error:
        raise SweepError(f"the point {_text(overrides)}: {error}") from None


def _points_of_file(path: Path) -> list[Overrides]:
    """Overrides of each point of a file; raises ``SweepError`` for a file that is missing or has no points."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise SweepError(f"there is no file {str(path)!r}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        rows = [*module.points()] if callable(getattr(module, "points", None)) else None
    except Exception as error:  # of the code in the file
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = f", line {lines[-1]}" if lines else ""
        raise SweepError(f"{path}{line}: {type(error).__name__}: {error}") from error
    if rows is None or not all(isinstance(row, Mapping) and all(isinstance(key, str) for key in row) for row in rows):
        raise SweepError(f"{path} needs a function points(), which returns overrides: [{{'optimize.rounds': 1}}, ...]")
    return [{path.removeprefix("config."): value for path, value in row.items()} for row in rows]


def _field(plain: Mapping[str, Any], path: str) -> Any:
    """The value of a field; raises ``SweepError`` where there is none."""
    value: Any = plain
    for depth, name in enumerate(path.split(".")):
        if not isinstance(value, Mapping) or name not in value:
            where = ".".join(path.split(".")[:depth]) or "a configuration"
            known = ", ".join(value) if isinstance(value, Mapping) else "no fields"
            near = did_you_mean(name, value) if isinstance(value, Mapping) else ""
            raise SweepError(f"there is no field {path!r}{near or ':'} {where} has {known}")
        value = value[name]
    return value


def _value(path: str, text: str, current: Any) -> Any:
    """A value of the type of ``current``."""
    if isinstance(current, bool):
        if text.lower() not in ("true", "false"):
            raise SweepError(f"{path} is {text!r}; allowed: true, false")
        return text.lower() == "true"
    if isinstance(current, int | float):
        try:
            return type(current)(text)
        except ValueError:
            kind = "a whole number" if isinstance(current, int) else "a number"
            alone = "; a range stands alone" if ":" in text else ""
            raise SweepError(f"{path} is {text!r}, expected {kind}{alone}") from None
    return text


def _text(overrides: Overrides) -> str:
    return ",".join(f"{path}={value}" for path, value in overrides.items())
