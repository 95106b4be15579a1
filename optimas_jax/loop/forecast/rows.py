"""Rows and system of a run that is only planned: its own rows, if they are on this machine, or stand-ins."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from optimas_jax.benchmarks.data import Dataset
from optimas_jax.core.system import System
from optimas_jax.core.types import Example
from optimas_jax.loop.config import RunConfig
from optimas_jax.loop.setup.start import data_and_system, read_start

_FEW = 8  # stand-in rows of each split, which are repeated


def rows_and_system(benchmark: Any, config: RunConfig) -> tuple[Dataset, System, tuple[str, ...]]:
    """Rows and system without any download.

    Returns:
      Rows and system; and notes on the rows.

    Raises:
      ValueError: they cannot be used.
    """
    start = read_start(config.optimize.start, config.optimize.start_names)
    offline = getattr(benchmark, "OFFLINE", None)
    if offline is None or config.data.path or config.data.source in offline:
        return *data_and_system(benchmark, config, start), ()
    sizes = {split: size for split, size in config.data.sizes.items() if size}
    few = dataclasses.replace(
        config.data, source=offline[0], splits="dealt", mix={}, reserve=0, **dict.fromkeys(sizes, _FEW)
    )
    data, system = data_and_system(benchmark, dataclasses.replace(config, data=few), start)
    splits = {split: _repeated(data.splits[split], size) for split, size in sizes.items()}
    note = (
        f"rows of {config.data.source!r} are not read: {offline[0]!r} ones stand for them, and true ones may be longer"
    )
    return dataclasses.replace(data, splits=splits), system, (note,)


def _repeated(examples: Sequence[Example], size: int) -> tuple[Example, ...]:
    """As many examples as ``size``, each with different inputs."""
    rounds = itertools.islice(zip(itertools.count(), itertools.cycle(examples), strict=False), size)
    return tuple(_numbered(example, number) for number, example in rounds)


def _numbered(example: Example, number: int) -> Example:
    texts = [field for field, value in example.inputs.items() if isinstance(value, str)]
    inputs = {field: f"{value} ({number})" if field in texts[:1] else value for field, value in example.inputs.items()}
    return dataclasses.replace(example, id=f"{example.id}/{number}", inputs=inputs)
