"""Costs of a run, step by step, beside the costs in its plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from optimas_jax.core.usage import Usage
from optimas_jax.loop.config import RunConfig, key_of
from optimas_jax.loop.context import Host
from optimas_jax.loop.iteration import ITERATION
from optimas_jax.loop.journal import PLAN, RESULTS

SPENT = "spent.json"  # costs by step, in the run folder
_PHASES = ("observe", "probe", "collect", "optimize", "confirm", "evaluate")
_PARTS = ("", "validation", *ITERATION)


def _index(names: Sequence[str], name: str) -> int:
    return names.index(name) if name in names else len(names)


def in_order(steps: Iterable[str]) -> list[str]:
    """Steps (``llm.accounts.bill``) in the order of a run; others last."""

    def position(step: str) -> tuple[int, int]:
        phase, _, part = step.partition(": ")
        return _index(_PHASES, phase), _index(_PARTS, part)

    return sorted(dict.fromkeys(steps), key=position)


def note_spent(host: Host) -> dict[str, Usage]:
    """Adds the costs of this command to the costs of earlier ones in the folder, and returns the sum. A step that a
    command repeats from the tape counts once; seconds of waiting add up. The file of a run with results is not
    changed."""
    spent = {step: Usage.from_json(row) for step, row in (host.folder.read(SPENT) or {}).items()}
    for step, usage in host.ledger.bill.take().items():
        seconds = usage.seconds + (spent[step].seconds if step in spent else 0.0)
        spent[step] = dataclasses.replace(usage, seconds=seconds)
    if spent and host.folder.read(RESULTS) is None:
        host.folder.write(SPENT, {step: usage.to_json() for step, usage in spent.items()})
    return spent


def beside_plan(host: Host, config: RunConfig) -> dict[str, dict[str, Any]]:
    """Costs by step: ``spent``, and ``predicted`` (low, expected, high; None without a plan)."""
    spent, plan = note_spent(host), host.folder.read(PLAN)
    predicted = plan["host"]["steps"] if plan and plan["config"] == key_of(config) else {}
    return {
        step: {
            "spent": spent.get(step, Usage()).to_json(),
            "predicted": predicted.get(step),
        }
        for step in in_order((*predicted, *spent))
    }
