"""Saves and loads groups, and converts them to and from the published preference data sets.

A folder of groups is a Hugging Face dataset with one row per group. Its subfolder ``preferences`` holds the same data
in the format of the original project, one dataset per component with the columns ``context``, ``response_chosen``,
``response_rejected``, ``score_chosen``, ``score_rejected``, ``variable_chosen`` and ``variable_rejected``
(snap-stanford/optimas: optimas/collect/rollouts.py), so that either project trains on the other's data.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from optimas_jax.core.folder.checksums import check_files, write_checksums
from optimas_jax.core.text.json_text import parse_json, shown
from optimas_jax.core.types import Candidate, Group, StopRun, digest, freeze, thaw


class GroupsError(StopRun):
    """Groups cannot be written or read."""


def save_groups(path: Path, groups: Sequence[Group]) -> None:
    """Writes ``path`` (one row per group) and ``path/preferences``; replaces an old folder in one step, unless it has
    the same groups.

    Raises:
      GroupsError: if it cannot be written.
    """
    datasets.disable_progress_bars()
    with contextlib.suppress(GroupsError):  # a damaged folder is replaced
        if load_groups(path) == list(groups):
            return
    partial, old = path.with_name(path.name + ".partial"), path.with_name(path.name + ".old")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        datasets.Dataset.from_list([group_to_row(group) for group in groups]).save_to_disk(str(partial))
        pairs = {name: datasets.Dataset.from_list(rows) for name, rows in to_preferences(groups).items()}
        if pairs:
            datasets.DatasetDict(**pairs).save_to_disk(str(partial / "preferences"))
        write_checksums(partial)
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            path.rename(old)
        partial.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        if old.exists() and not path.exists():
            old.rename(path)
        raise GroupsError(
            f"cannot write {path} ({error}). What was paid for is on the tape: make room and run the same command again"
        ) from error


def load_groups(path: Path) -> list[Group] | None:
    """Loads the groups of a folder; None if there is no folder.

    Raises:
      GroupsError: if the folder is damaged.
    """
    if not path.is_dir():
        return None
    try:
        check_files(path)  # before pyarrow reads them: a single flipped bit can crash it
        if not parse_json((path / "state.json").read_bytes())["_data_files"]:
            return []  # without rows datasets writes no file, and cannot read the folder
        rows = datasets.Dataset.load_from_disk(str(path), keep_in_memory=True).to_list()
        return [group_from_row(row) for row in rows]
    except Exception as error:  # pyarrow and datasets raise many kinds for a damaged file
        raise GroupsError(
            f"{path} is damaged ({type(error).__name__}: {error}): delete it and run --stage=collect again"
        ) from error


def to_preferences(groups: Iterable[Group]) -> dict[str, list[dict[str, Any]]]:
    """All ordered pairs with different rewards, by component, in the published columns."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for group in groups:
        trajectory = {
            "example": {"input": {"example_id": group.example_id}},
            group.component: {"input": thaw(group.inputs)},
        }
        context = json.dumps(trajectory, ensure_ascii=False)
        for better in group.candidates:
            for worse in group.candidates:
                if better.reward > worse.reward:
                    rows.setdefault(group.component, []).append(
                        {
                            "context": context,
                            "response_chosen": json.dumps(thaw(better.outputs), ensure_ascii=False),
                            "response_rejected": json.dumps(thaw(worse.outputs), ensure_ascii=False),
                            "score_chosen": better.reward,
                            "score_rejected": worse.reward,
                            "variable_chosen": json.dumps(better.source),
                            "variable_rejected": json.dumps(worse.source),
                        }
                    )
    return rows


def from_preferences(pairs: Mapping[str, Iterable[Mapping[str, Any]]]) -> list[Group]:
    """Groups from published pairs: the responses to one context become candidates, one for each different response.

    A context is a trajectory: the inputs (and outputs) of every component up to the current one. If ``to_preferences``
    wrote it, it has the example's id, so that the example stays in its part (``rewards.split``); otherwise a digest of
    the first component's input names the example. Groups of all components on one example share their name.

    Raises:
      ValueError: for a row that lacks a column, or with a context that lacks the component's input.
    """
    groups = []
    for component, rows in pairs.items():
        by_context: dict[tuple[str, str], dict[str, Candidate]] = {}  # (example, inputs) -> response -> candidate
        for number, row in enumerate(rows):
            try:
                trajectory = parse_json(row["context"])
                inputs = json.dumps(trajectory[component]["input"], sort_keys=True)
                key = _example_id(trajectory), inputs
                for side in ("chosen", "rejected"):
                    by_context.setdefault(key, {}).setdefault(row[f"response_{side}"], _candidate(row, side))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"row {number} of {component!r} is not a preference pair ({type(error).__name__}: {error})"
                ) from error
        for (example_id, inputs), candidates in by_context.items():
            groups.append(Group(component, example_id, freeze(parse_json(inputs)), tuple(candidates.values())))
    return groups


def _example_id(trajectory: Mapping[str, Any]) -> str:
    """The id that ``to_preferences`` wrote, or a digest of the first component's input."""
    first, step = next(iter(trajectory.items()))
    match first, step["input"]:
        case "example", {"example_id": str(example_id), **others} if not others:
            return example_id
        case _, inputs:
            return digest(inputs)


def _candidate(row: Mapping[str, Any], side: str) -> Candidate:
    """One side of a pair; keeps a source that ``to_preferences`` wrote."""
    variable = row[f"variable_{side}"]
    ours = re.fullmatch(r'"(current|sampled:\d+|value:\w+|trace:[^"\\]+)"', str(variable))
    source = ours[1] if ours else f"variable:{variable}"
    return Candidate(_fields(row[f"response_{side}"]), source, _rewards([row[f"score_{side}"]]))


def _fields(text: str) -> Mapping[str, Any]:
    """Fields from a JSON text; raises ``ValueError`` for anything else."""
    data = parse_json(text)
    if not isinstance(data, dict):
        raise ValueError(f"the fields of a component are an object, got {shown(data)}")
    return freeze(data)


def _rewards(numbers: Iterable[Any]) -> tuple[float, ...]:
    """Rewards as floats; raises ``ValueError`` for an empty list, or a number that is not finite."""
    rewards = tuple(map(float, numbers))
    if not rewards or not all(map(math.isfinite, rewards)):
        raise ValueError(f"rewards are finite numbers, at least one, got {shown(rewards)}")
    return rewards


def group_to_row(group: Group) -> dict[str, Any]:
    """A group as a row; inputs and outputs are JSON texts, because components' fields differ."""
    return {
        "component": group.component,
        "configuration": group.configuration,
        "example_id": group.example_id,
        "inputs": json.dumps(thaw(group.inputs), ensure_ascii=False),
        "outputs": [json.dumps(thaw(c.outputs), ensure_ascii=False) for c in group.candidates],
        "sources": [c.source for c in group.candidates],
        "rewards": [list(c.rewards) for c in group.candidates],
        "occurrence": group.occurrence,
    }


def group_from_row(row: Mapping[str, Any]) -> Group:
    """The inverse of ``group_to_row``; raises ``ValueError``, ``KeyError`` or ``TypeError`` for other data."""
    candidates = tuple(
        Candidate(_fields(outputs), str(source), _rewards(rewards))
        for outputs, source, rewards in zip(row["outputs"], row["sources"], row["rewards"], strict=True)
    )
    configuration, occurrence = row.get("configuration", ""), row.get("occurrence", 0)  # not in older data sets
    names = (row["component"], row["example_id"], configuration)
    if not candidates or type(occurrence) is not int or not all(isinstance(name, str) for name in names):
        raise ValueError(f"a group has texts as names and at least one candidate, got {shown(dict(row))}")
    return Group(row["component"], row["example_id"], _fields(row["inputs"]), candidates, configuration, occurrence)
