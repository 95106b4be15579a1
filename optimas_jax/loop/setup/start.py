"""Continuing from a saved result (``config.optimize.start``): the search starts from its values, answers on the tape of
its run are free, and the new result replaces it only if it is confirmed on rows that the earlier run did not use.

Prompts that were written elsewhere are a start, too; it is not known which rows they were tuned on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optimas_jax.benchmarks.data import Dataset
from optimas_jax.core.folder.files import FolderError, read_file
from optimas_jax.core.system import System
from optimas_jax.core.types import Example, digest
from optimas_jax.core.values import Configuration
from optimas_jax.loop.config import RunConfig
from optimas_jax.loop.journal import BEST, TAPE, RunFolder, load_best
from optimas_jax.traces.prompts import Written, is_written, prompts_for, read_names, read_written

ROWS = "rows.json"  # rows of a run and of the runs that it started from, in its folder and in its best/
NO_FRESH_ROWS = "not confirmed: no fresh rows"


@dataclasses.dataclass(frozen=True)
class Start:
    """A saved result, or prompts that were written elsewhere.

    Attributes:
      folder: ``best/`` of a run, or a copy of it; None for prompts.
      configuration: its values.
      used: digests of the rows of its run, and of the runs that this one started from.
      tape: tape of its run, if that still exists.
      written: prompts by their names elsewhere.
      names: names of components by names of prompts.
    """

    folder: Path | None
    configuration: Configuration
    used: frozenset[str]
    tape: Path | None
    written: Written | None = None
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def values(self, system: System) -> Configuration:
        """Its values for the components of a system.

        Raises:
          TraceError: prompts cannot be matched with components.
        """
        if self.written is None:
            return self.configuration
        return Configuration(prompts_for(self.written, system.components, self.names))


def read_start(folder: str, names: str = "") -> Start | None:
    """Reads the saved result in a ``best/`` folder, or in the folder of its run, or prompts of a file; None for "".

    Args:
      names: ``config.optimize.start_names``.

    Raises:
      FolderError: there is no saved result, or its rows are not known.
      TraceError: a file holds no prompts.
    """
    if not folder:
        return None
    if is_written(folder):
        return Start(None, Configuration({}), frozenset(), None, read_written(folder), read_names(names))
    best = Path(folder)
    best = best / BEST if (best / BEST).is_dir() else best
    configuration, run = load_best(best), best.parent
    file = next((path for path in (best / ROWS, run / ROWS) if path.is_file()), None)
    if file is None:
        raise FolderError(
            f"{best} has no {ROWS}, which names the rows that its run used: what is found from there could not be "
            "confirmed on others. Run the command that made it once more with this version"
        )
    tape = run / TAPE
    used = frozenset(read_file(file) or ())
    return Start(best, configuration, used, tape if tape.is_file() else None)


def starting_from(system: System, configuration: Configuration) -> System:
    """The system with saved values as the defaults of its components.

    Raises:
      ValueError: a value is of no component, or not allowed.
    """
    whole = Configuration({**system.default_configuration(), **configuration})
    system.check(whole)
    components = tuple(
        dataclasses.replace(component, default=whole[component.name]) if component.name in whole else component
        for component in system.components
    )
    return dataclasses.replace(system, components=components)


def data_and_system(benchmark: Any, config: RunConfig, start: Start | None) -> tuple[Dataset, System]:
    """Rows and system of a run, from its benchmark; with a start, fresh rows for the confirmation and the saved values.

    Raises:
      ValueError: they cannot be used.
    """
    data = with_reserve(benchmark.load(config.data), config.data.reserve)
    if start is not None:
        data = with_fresh_rows(data, start.used)
    system = benchmark.build(data.check(), config.system)
    return data, system if start is None else starting_from(system, start.values(system))


def keep(folder: RunFolder, data: Dataset, start: Start | None) -> None:
    """Writes to a run folder which rows it uses, now and in earlier commands, and copies the adapters and local rewards
    of the values that it starts from."""
    if start is not None and start.folder is not None:
        folder.take_parts(start.configuration, start.folder)
    earlier = frozenset() if start is None else start.used
    before = frozenset() if folder.is_unused() else frozenset(folder.read(ROWS) or ())
    folder.write(ROWS, rows_of(data.splits, earlier | before))


def row_digest(example: Example) -> str:
    """Digest of a row's inputs, which identifies it in any split and order."""
    return digest(example.inputs)


def rows_of(splits: Mapping[str, Sequence[Example]], earlier: frozenset[str]) -> list[str]:
    """Digests of all rows of a run, and ``earlier`` ones."""
    return sorted(earlier | {row_digest(example) for examples in splits.values() for example in examples})


def with_reserve(data: Dataset, reserve: int) -> Dataset:
    """The data without the last ``reserve`` rows of its confirm split, which this run does not use.

    Raises:
      ValueError: the split has no further rows.
    """
    rows = data.splits.get("confirm", ())
    if reserve and reserve >= len(rows):
        raise ValueError(
            f"config.data.reserve is {reserve}, and the confirm split has {len(rows)} rows: keep fewer back, or raise "
            "config.data.confirm"
        )
    return (
        dataclasses.replace(data, splits={**data.splits, "confirm": rows[: len(rows) - reserve]}) if reserve else data
    )


def with_fresh_rows(data: Dataset, used: frozenset[str]) -> Dataset:
    """The data with only fresh rows in its confirm split, as many as before if there are enough. Fresh rows of
    ``train`` and ``val`` change places with used ones; ``test`` stays as it is."""
    splits = {split: list(examples) for split, examples in data.splits.items()}
    confirm = splits.get("confirm", [])
    stale = [index for index, example in enumerate(confirm) if row_digest(example) in used]
    for examples in (splits["train"], splits["val"]):
        for position, example in enumerate(examples):
            if stale and row_digest(example) not in used:
                index = stale.pop()
                examples[position], confirm[index] = confirm[index], example
    splits["confirm"] = [example for example in confirm if row_digest(example) not in used]
    return dataclasses.replace(data, splits={split: tuple(examples) for split, examples in splits.items()})
