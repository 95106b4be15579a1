"""What a search has used, what its next step is expected to use, and its hard limit (``config.optimize.max_tokens``).

Everything counts, whether it was paid now or came from the tape. Collecting and optimising share one limit
(``search_limit``), which nothing overruns (``Ledger.limit``). A search is a sequence of named *blocks* (a gate, a
race), each of which counts as a whole or not at all:

    with search_limit(host, "optimize"):                         tokens of max_tokens that collecting left
        if fits(host, expected_cost(host, name, runs)):           start only what is expected to fit
            try:
                with block(host, "3/gate-0", tokens=5_000):      at most 5,000, and at most what is left
                    ...
            except OutOfBudget: ...                             the block counts for nothing; its tokens are used

The same command again does the same, although the tape now answers at the true cost what had to be admitted at its
worst case, so that more would fit: a block that was cut is recorded with what it used (``budget_cuts.json``), and the
next command counts that and cuts it before its first request.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optimas_jax.core.usage import Allowance, OutOfBudget, Usage
from optimas_jax.loop.context import Host

COLLECTED = "collected.json"  # what collecting used, in the run folder
CUTS = "budget_cuts.json"  # blocks that the limit cut, in the run folder
_PHASE = "optimize"  # of the ledger


@contextlib.contextmanager
def search_limit(host: Host, stage: str) -> Iterator[Allowance]:
    """Limits the tokens of ``stage`` (``collect`` or ``optimize``) inside the block to its rest of
    ``config.optimize.max_tokens``; only counts them without that setting."""
    limit = host.max_tokens
    collected = _collected(host) if stage == _PHASE else Usage()
    with host.ledger.limit(max(0, limit - collected.tokens) if limit else None) as allowance:
        yield allowance


@contextlib.contextmanager
def block(host: Host, name: str, tokens: int | None = None) -> Iterator[Allowance]:
    """A part of the search that counts as a whole or not at all.

    Args:
      name: unique in the search, and the same in every repetition of it.
      tokens: the most that it may use; None for all that is left.

    Raises:
      OutOfBudget: if the limit cuts it, now or in an earlier command, which recorded the cut. The caller must drop
        state that was changed inside.
    """
    key = f"{host.max_tokens}:{name}"
    cuts = host.folder.read(CUTS) or {}
    if key in cuts:
        _replay_cut(host, cuts[key])
        raise OutOfBudget(f"block {name!r} was cut by the limit of {host.max_tokens:,} tokens before")
    before = _meter_usage(host)
    with host.ledger.limit(tokens) as allowance:
        try:
            yield allowance
        except OutOfBudget:
            executed = _meter_usage(host) - before
            requests = [[role, request, *dataclasses.astuple(usage)] for role, request, usage in allowance.requests]
            host.folder.write(CUTS, {**cuts, key: {"executed": executed.to_json(), "requests": requests}})
            raise


def _replay_cut(host: Host, cut: dict[str, Any]) -> None:
    """Counts the costs of a block that an earlier command cut."""
    host.ledger.replay([(role, request, Usage(*usage)) for role, request, *usage in cut["requests"]])
    if host.system.meter is not None:
        executed = Usage.from_json(cut["executed"])
        host.system.meter.runs += executed.system_runs
        host.system.meter.executions += executed.component_calls


def stage_usage(host: Host) -> Usage:
    """Costs of the running stage, inside its ``search_limit``."""
    return host.ledger.used + _meter_usage(host)


def cost_so_far(host: Host) -> Usage:
    """Costs of collecting, in whichever command, and of the running search."""
    return _collected(host) + stage_usage(host)


def _collected(host: Host) -> Usage:
    data = host.folder.read(COLLECTED)
    return Usage() if data is None else Usage.from_json(data)


def _meter_usage(host: Host) -> Usage:
    meter = host.system.meter
    return Usage(system_runs=meter.runs, component_calls=meter.executions) if meter else Usage()


def costs_from(host: Host) -> dict[str, float]:
    """Mean tokens per request of each component plus all its descendants: a run of the system from there on."""
    means = _mean_tokens(host)
    return {
        name: sum(means.get(other, 0.0) for other in (name, *sorted(host.system.descendants(name))))
        for name in host.components
    }


def expected_cost(host: Host, name: str = "", runs: int = 1, calls: int = 0) -> int:
    """Expected tokens of a gate or a block, from mean tokens per request in this search so far; 0 before its first run.

    Args:
      name: component from which on the system runs; "" for whole runs.
      runs: runs of the system from there on, the component included, its metric's requests included.
      calls: further calls of the component alone.
    """
    means = _mean_tokens(host)
    names = [name, *sorted(host.system.descendants(name))] if name else list(host.system.order)
    whole = sum(means.get(other, 0.0) for other in (*names, "metric"))
    return math.ceil(runs * whole + calls * means.get(name, 0.0))


def fits(host: Host, expected: float) -> bool:
    """Whether ``expected`` tokens are left under all limits in force."""
    return expected <= host.ledger.left


def _mean_tokens(host: Host) -> dict[str, float]:
    """Mean tokens per request, by role."""
    return {role: usage.tokens / usage.calls for role, usage in host.ledger.usage(_PHASE).items()}


def emit_curve(host: Host, at: str, iteration: int, val_score: float) -> None:
    """A point of score against cost, for the journal. ``at``: ``start``, ``accept`` or ``iteration`` (its end)."""
    host.folder.emit("curve", at=at, iteration=iteration, val_score=val_score, **cost_so_far(host).to_json())


def read_curve(workdir: Path) -> list[dict[str, Any]]:
    """The points that a run's journal holds, in order."""
    lines = (workdir / "journal.jsonl").read_text(encoding="utf-8").split("\n")
    return [event for event in map(json.loads, filter(None, lines)) if event["event"] == "curve"]
