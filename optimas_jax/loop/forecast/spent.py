"""What a run spent, step by step, beside what its plan expected."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from optimas_jax.core.usage import Usage
from optimas_jax.loop.config import RunConfig, key_of
from optimas_jax.loop.context import Host
from optimas_jax.loop.iteration import ITERATION
from optimas_jax.loop.journal import PLAN, RESULTS

SPENT = "spent.json"  # in the run folder, by step
_PHASES = ("observe", "probe", "collect", "optimize", "confirm", "evaluate")
_PARTS = ("", "validation", *ITERATION)


def _index(names: Sequence[str], name: str) -> int:
    return names.index(name) if name in names else len(names)


def in_order(steps: Iterable[str]) -> list[str]:
    """Steps (``llm.bill``) in the order of a run; others last."""

    def place(step: str) -> tuple[int, int]:
        phase, _, part = step.partition(": ")
        return _index(_PHASES, phase), _index(_PARTS, part)

    return sorted(dict.fromkeys(steps), key=place)


def note_spent(host: Host) -> dict[str, Usage]:
    """Adds what this command used to what the folder knows of earlier ones, and returns all of it. What a command
    repeats from the tape costs as much as before; seconds of waiting add up. A run that has its results stays as it
    was."""
    known = {step: Usage.from_json(row) for step, row in (host.folder.read(SPENT) or {}).items()}
    for step, usage in host.ledger.bill.take().items():
        seconds = usage.seconds + (known[step].seconds if step in known else 0.0)
        known[step] = dataclasses.replace(usage, seconds=seconds)
    if known and host.folder.read(RESULTS) is None:
        host.folder.write(SPENT, {step: usage.to_json() for step, usage in known.items()})
    return known


def beside_plan(host: Host, config: RunConfig) -> dict[str, dict[str, Any]]:
    """By step: what was ``spent``, and what was ``predicted`` (low, expected, high), None without a plan."""
    spent, plan = note_spent(host), host.folder.read(PLAN)
    predicted = plan["host"]["steps"] if plan and plan["config"] == key_of(config) else {}
    return {
        step: {
            "spent": spent.get(step, Usage()).to_json(),
            "predicted": predicted.get(step),
        }
        for step in in_order((*predicted, *spent))
    }
