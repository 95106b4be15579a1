"""Remaining seconds of a run: from its plan if it has one (``--plan``), and from its own pace."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from optimas_jax.core.progress import Bar
from optimas_jax.core.usage import Usage

_PHASES = ("observe", "probe", "collect", "train", "optimize", "confirm", "evaluate")
_TRUST = 0.05  # share of a plan: until it is done, the plan's own seconds weigh more than the run's pace


@dataclasses.dataclass(frozen=True)
class Pace:
    """Progress of a run so far.

    Attributes:
      phase: current phase.
      iteration: number of the current iteration, from 1.
      iterations: number of iterations of the whole search.
      began: seconds from the start of the command to the start of the current iteration.
      ends: seconds from the start of the command to start and end of each iteration that this command has paid for.
      used: costs by step, answers from the tape included.
      paid: share of these calls that this command paid.
      seconds: seconds since the start of the command.
      run_seconds: seconds of a run of the system, in the validation of the default; None if this command did not pay
        for that.
      final_runs: runs of the system in confirmation and final test.
      bars: open bars.
    """

    phase: str
    iteration: int = 0
    iterations: int = 0
    began: float = 0.0
    ends: Sequence[tuple[float, float]] = ()
    used: Mapping[str, Usage] = dataclasses.field(default_factory=dict)
    paid: float = 1.0
    seconds: float = 0.0
    run_seconds: float | None = None
    final_runs: int = 0
    bars: Sequence[Bar] = ()


def seconds_left(pace: Pace, plan: Mapping[str, Usage] | None) -> float | None:
    """Seconds until the end of the run; None as long as they are unknown.

    Args:
      plan: expected costs by step (``loop.forecast.plan``).
    """
    if pace.phase == _PHASES[-1] and pace.bars and pace.bars[0].left is not None:
        return pace.bars[0].left
    return _by_plan(pace, plan) if plan else _by_iterations(pace)


def _by_plan(pace: Pace, plan: Mapping[str, Usage]) -> float | None:
    if pace.phase not in _PHASES:
        return sum(usage.seconds for usage in plan.values()) or None
    weighs = "seconds" if any(usage.seconds for usage in plan.values()) else "calls"
    done = total = 0.0
    for phase in _PHASES:
        steps = {step: usage for step, usage in plan.items() if step.partition(":")[0] == phase}
        weight = sum(getattr(usage, weighs) for usage in steps.values())
        total += weight
        done += weight * _share_done(pace, phase, steps)
    if not total:
        return None
    fresh, first = done * pace.paid, _TRUST * total
    expected = first if weighs == "seconds" else 0.0
    if not fresh + expected:
        return None
    slowness = (pace.seconds + expected) / (fresh + expected)
    return (total - done) * slowness


def _share_done(pace: Pace, phase: str, steps: Mapping[str, Usage]) -> float:
    """Share of a phase that is done: calls so far by expected calls; in the search kept within the bounds that the
    current iteration sets, which is more exact than calls."""
    now, position = _PHASES.index(pace.phase), _PHASES.index(phase)
    if position != now:
        return float(position < now)
    expected = sum(usage.calls for usage in steps.values())
    used = sum(usage.calls for step, usage in pace.used.items() if step.partition(":")[0] == phase)
    share = min(0.99, used / expected) if expected else 0.0
    if phase == "optimize" and pace.iterations and pace.iteration:
        low, high = (pace.iteration - 1) / pace.iterations, pace.iteration / pace.iterations
        share = min(max(share, low), high)
    return share


def _by_iterations(pace: Pace) -> float | None:
    """Remaining seconds if iterations take as long as earlier ones, and final runs as long as in the validation."""
    if pace.phase not in ("optimize", "confirm", "evaluate") or not pace.ends or pace.run_seconds is None:
        return None
    final = pace.final_runs * pace.run_seconds
    if pace.phase != "optimize":
        return final
    each = sum(end - began for began, end in pace.ends) / len(pace.ends)
    behind = pace.iterations - pace.iteration  # number of iterations after the current one
    return max(0.0, each - (pace.seconds - pace.began)) + behind * each + final
