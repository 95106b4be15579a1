"""Events of a run, one frozen dataclass each: callbacks get them, and lines of ``journal.jsonl`` are made from them.

An event is named in the journal after its class: ``SearchEnd`` is ``search_end``. ``Begin`` and ``End`` belong to a
command, and only callbacks get them. Every other event belongs to the run, and is written to its journal before
callbacks get it.

Units: scores, rewards and gains are in units of the metric. Local scores and local gains have the scale of their local
reward, which only orders outputs of one input. Iterations count from 0; intervals are 95 %.

Example:
  ```python
  for event in oj.events.read_events("runs/rag"):
      if isinstance(event, oj.events.Accept):
          print(event)
  ```
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optimas_jax.core.folder.files import FolderError, read_rows
from optimas_jax.core.folder.search_events import (
    FLAT,
    Accept,
    Adaptation,
    Curve,
    Dropped,
    Gate,
    Label,
    OutOfBudget,
    Pick,
    Proposal,
    Proposed,
    Race,
    SearchEnd,
    Tuned,
    Update,
    Validation,
    Verdict,
)
from optimas_jax.core.text.json_text import check_record, shown
from optimas_jax.core.types import freeze
from optimas_jax.core.usage import Usage
from optimas_jax.core.values import Value, value_from_json, value_to_json

# Of a command


@dataclasses.dataclass(frozen=True, kw_only=True)
class Begin:
    """A command begins.

    Attributes:
      folder: of the run.
      benchmark, variant, seed: of its configuration.
      stage: ``all``, or the one stage that the command runs.
      components: the tuned components.
      examples: number of them by split.
      settings: the whole configuration, as plain data.
      resumed: whether the folder has events of earlier commands, which callbacks do not get again (``read_events``).
      earlier: number of these events.
    """

    folder: str
    benchmark: str
    variant: str
    seed: int
    stage: str
    components: tuple[str, ...]
    examples: Mapping[str, int]
    settings: Mapping[str, Any]
    resumed: bool
    earlier: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class End:
    """A command ends; the last event in any case, unless the process is killed.

    Attributes:
      finished: whether it did all its work; if not, the same command continues it.
      reason: why it stopped, "" if it is finished.
      spent: costs by step, such as ``optimize: propose``, answers from the tape included.
    """

    finished: bool
    reason: str
    spent: Mapping[str, Usage]


# Before the search


@dataclasses.dataclass(frozen=True, kw_only=True)
class Groups:
    """Collecting is done for a component.

    Attributes:
      groups: inputs with several candidate outputs.
      informative: groups with different rewards.
      stopped: reason why collecting ended.
    """

    component: str
    groups: int
    informative: int
    stopped: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Epoch:
    """An epoch of the first training of local rewards, or their fit.

    Attributes:
      epoch: from 0.
      metrics: by name, such as the loss.
    """

    epoch: int
    metrics: Mapping[str, float] = dataclasses.field(metadata=FLAT)


# After the search


@dataclasses.dataclass(frozen=True, kw_only=True)
class Confirmation:
    """The search's result was tested on examples that no gate has seen.

    Attributes:
      n: number of the examples.
      changes: accepted changes of the last confirmed state; None if no state is confirmed.
      verdict: a sentence.
      tests: of the last state, then of earlier ones: ``changes``, ``gain``, ``ci95``, ``p_value``, ``level``,
        ``confirmed`` of each (``search.confirm.StateTest``).
    """

    n: int
    changes: int | None
    verdict: str
    tests: Sequence[Mapping[str, Any]] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alignment:
    """How well local rewards order outputs of inputs that they were not trained on.

    Attributes:
      reward: name of the local reward.
      alignment: by component: ``pair_accuracy``, ``ci95``, ``n_pairs``, ``controls`` and so on
        (``rewards.alignment.Alignment``).
    """

    reward: str
    alignment: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blame:
    """Which components are likeliest at fault in the failing validation runs of a search's result.

    Attributes:
      reward: name of the local reward.
      passing, failing: numbers of runs.
      first: number of failing runs in which each component is likeliest at fault.
      reason: why nothing can be said, or "".
    """

    reward: str
    passing: int
    failing: int
    first: Mapping[str, int]
    reason: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refresh:
    """Fresh groups for local rewards were labelled after a search.

    Attributes:
      groups: number of groups with different rewards, by component.
    """

    groups: Mapping[str, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The result was compared with the default configuration.

    Attributes:
      n: examples of ``split``.
      gain: ``mean``, ``ci95`` and ``p_value`` of the paired difference of the score.
      before, after: mean score of the default configuration and of the result.
    """

    split: str
    n: int
    gain: Mapping[str, Any]
    before: float | None = None
    after: float | None = None


OF_COMMANDS = (Begin, End)
OF_RUNS = (
    *(Groups, Epoch, Pick, Update, Validation, Tuned, Label, Dropped, Proposed, Proposal, Race, Gate, Accept, Verdict),
    *(Adaptation, Curve, OutOfBudget, SearchEnd, Confirmation, Alignment, Blame, Refresh, Evaluation),
)
Event = (
    Groups
    | Epoch
    | Pick
    | Update
    | Validation
    | Tuned
    | Label
    | Dropped
    | Proposed
    | Proposal
    | Race
    | Gate
    | Accept
    | Verdict
    | Adaptation
    | Curve
    | OutOfBudget
    | SearchEnd
    | Confirmation
    | Alignment
    | Blame
    | Refresh
    | Evaluation
    | Begin
    | End
)


def name_of(event: Event | type[Event]) -> str:
    """The name of an event, or of its class, in the journal: ``out_of_budget``."""
    kind = event if isinstance(event, type) else type(event)
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.__name__).lower()


def to_json(event: Event) -> dict[str, Any]:
    """The line of an event in the journal, as plain data, without the time."""
    row: dict[str, Any] = {"event": name_of(event)}
    for field in dataclasses.fields(event):
        value = _plain(getattr(event, field.name))
        row |= value if field.metadata.get("flat") else {field.name: value}
    return row


def from_json(row: Mapping[str, Any]) -> Event | None:
    """The event of a line of the journal; None for one that this version does not know.

    Raises:
      ValueError: a field is missing, or cannot be read.
    """
    kind = _KINDS.get(row["event"])
    if kind is None:
        return None
    rest = {name: value for name, value in row.items() if name not in ("event", "time")}
    whole = [field.name for field in dataclasses.fields(kind) if not field.metadata.get("flat")]
    flat = [field.name for field in dataclasses.fields(kind) if field.metadata.get("flat")]
    fields = {name: rest.pop(name) for name in whole if name in rest} | dict.fromkeys(flat, rest)
    try:
        return kind(**{name: _typed(_HINTS[kind][name], value) for name, value in fields.items()})
    except (KeyError, TypeError) as error:
        raise ValueError(f"not the fields of an event {row['event']!r} ({type(error).__name__}: {error})") from error


def read_events(folder: str | Path) -> list[Event]:
    """The events in the journal of a run, finished or not, in their order. Lines that a resumed run found damaged are
    left out.

    Args:
      folder: of the run.

    Raises:
      FolderError: the journal cannot be read.
    """
    path = Path(folder) / "journal.jsonl"
    try:
        events = [from_json(row) for row in read_rows(path)]
    except ValueError as error:
        raise FolderError(f"{path} is damaged ({error}): the command that made the run mends it") from error
    return [event for event in events if event is not None]


def _plain(value: Any) -> Any:
    if isinstance(value, typing.get_args(Value)):
        return value_to_json(value)
    if isinstance(value, Usage):
        return value.to_json()
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _typed(hint: Any, value: Any) -> Any:
    if hint == Value:
        return value_from_json(value)
    if hint is Usage and _fits(Mapping[str, Any], value):
        costs = {field.name: value[field.name] for field in dataclasses.fields(Usage)}
        check_record(costs, _COSTS)
        return Usage.from_json(costs)
    if not _fits(hint, value):
        raise TypeError(f"{shown(value)} is not of type {hint}")
    return freeze(value)


def _fits(hint: Any, value: Any) -> bool:
    """Whether a value of JSON is one of a type. A number that is not finite is a text in the journal."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(option, value) for option in inner)
    if origin is typing.Literal:
        return value in inner
    if origin is tuple and inner[-1] is not ...:
        return isinstance(value, list) and len(value) == len(inner) and all(map(_fits, inner, value))
    if origin in (tuple, Sequence):
        return isinstance(value, list) and all(_fits(inner[0], item) for item in value)
    if origin is Mapping:
        return isinstance(value, dict) and all(_fits(inner[1], item) for item in value.values())
    if hint is float:
        return type(value) in (int, float) or value in ("nan", "inf", "-inf")
    return hint is Any or (type(value) is int if hint is int else isinstance(value, hint))


_COSTS: Mapping[str, Any] = typing.get_type_hints(Usage)
_KINDS: Mapping[str, type[Event]] = {name_of(kind): kind for kind in OF_RUNS}
_HINTS: Mapping[type[Any], Mapping[str, Any]] = {kind: typing.get_type_hints(kind) for kind in OF_RUNS}
