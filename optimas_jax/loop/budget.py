"""What a search has cost so far, and when it has cost enough.

Everything counts, whether it was paid for now or came from the tape: the same run stops at the same place however often
it is resumed.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from optimas_jax.loop.context import Run

COLLECTED = "collected.json"  # what collecting cost, in the run folder
_PHASE = "optimize"  # of the ledger


class OutOfTokens(Exception):
    """The search has used its tokens: what it was about to do is left undone."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of collecting and optimising.

    Attributes:
      calls, tokens, usd, seconds: different completions, their prompt and completion tokens, price, the models' time.
      system_runs: runs of the system, from the start or from where outputs were given, that executed a component.
      component_calls: executions of components, in these runs or alone.
    """

    calls: int = 0
    tokens: int = 0
    usd: float = 0.0
    seconds: float = 0.0
    system_runs: int = 0
    component_calls: int = 0

    def __add__(self, other: Cost) -> Cost:
        mine, its = dataclasses.astuple(self), dataclasses.astuple(other)
        return Cost(*(a + b for a, b in zip(mine, its, strict=True)))


def stage_cost(run: Run, phase: str) -> Cost:
    """Of a stage that this command has run."""
    rows = run.ledger.to_json().get(phase, {}).values()
    meter = run.system.meter
    return Cost(
        calls=sum(row["requests"] for row in rows),
        tokens=sum(row["prompt_tokens"] + row["completion_tokens"] for row in rows),
        usd=round(sum(row["usd"] for row in rows), 6),
        seconds=round(sum(row["seconds"] for row in rows), 3),
        system_runs=meter.runs if meter else 0,
        component_calls=meter.executions if meter else 0,
    )


def cost_so_far(run: Run) -> Cost:
    """Of collecting, whenever that was, and of what is optimised now."""
    return Cost(**(run.folder.read(COLLECTED) or {})) + stage_cost(run, _PHASE)


def costs_from(run: Run) -> dict[str, float]:
    """By component, mean tokens of its requests so far and of those of everything behind it: what a run of the system
    costs from there on."""
    own = {
        role: (row["prompt_tokens"] + row["completion_tokens"]) / row["requests"]
        for role, row in run.ledger.to_json().get(_PHASE, {}).items()
    }
    return {
        name: sum(own.get(other, 0.0) for other in (name, *sorted(run.system.descendants(name))))
        for name in run.components
    }


def is_spent(run: Run) -> bool:
    """Whether the search has used the tokens that it was given."""
    limit = run.config.optimize.max_tokens
    return bool(limit) and cost_so_far(run).tokens >= limit


def check_tokens(run: Run) -> None:
    """Raises ``OutOfTokens`` where ``is_spent``."""
    if is_spent(run):
        raise OutOfTokens


def emit_curve(run: Run, at: str, iteration: int, val_score: float) -> None:
    """A point of score against cost, for the journal. ``at``: ``start``, ``accept`` or ``iteration`` (its end)."""
    run.folder.emit("curve", at=at, iteration=iteration, val_score=val_score, **dataclasses.asdict(cost_so_far(run)))


def read_curve(workdir: Path) -> list[dict[str, Any]]:
    """The points that a run's journal holds, in order."""
    lines = (workdir / "journal.jsonl").read_text(encoding="utf-8").split("\n")
    return [event for event in map(json.loads, filter(None, lines)) if event["event"] == "curve"]
