"""Pareto set: configurations that passed the gate, by quality against cost. A point is dominated if another one has at
least its score, at most each of its costs, and is strictly better in one of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from optimas_jax.core.objective import MEASURES, Objective, amounts_of
from optimas_jax.core.stats import mean_interval
from optimas_jax.core.types import Trace

SECONDS = "seconds"


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over validation runs, and its 95 % bootstrap interval."""

    mean: float
    ci95: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Point:
    """A configuration with scores and costs of its validation runs.

    Attributes:
      changes: number of accepted changes that lead to it; 0 for the start.
      component: component of the last change; "" for the start.
      configuration: digest of the configuration.
      score: the metric.
      reward: the metric minus weighted costs, by which runs were compared.
      costs: costs of a run, by measure (``core.objective.MEASURES``); without seconds where they were not measured.
      exceeds: measures whose limit it exceeds; only the start may exceed one.
    """

    changes: int
    component: str
    configuration: str
    score: Estimate
    reward: Estimate
    costs: Mapping[str, Estimate]
    exceeds: tuple[str, ...] = ()


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and interval of values; a mean of equal values is that value, without the rounding of a sum."""
    if min(values) == max(values):
        return Estimate(float(values[0]), (float(values[0]), float(values[0])))
    return Estimate(*mean_interval(values))


def costs_of(traces: Sequence[Trace], *, seconds: bool = True) -> dict[str, Estimate]:
    """Costs of a run by measure, from runs.

    Args:
      seconds: whether they were measured.
    """
    amounts = [amounts_of(trace.cost) for trace in traces]
    return {name: estimate([run[name] for run in amounts]) for name in MEASURES if seconds or name != SECONDS}


def point_of(
    traces: Sequence[Trace],
    configuration: str,
    objective: Objective | None,
    *,
    changes: int = 0,
    component: str = "",
    seconds: bool = True,
) -> Point:
    """The point of a configuration, from its validation runs; see ``Point``."""
    costs = costs_of(traces, seconds=seconds)
    means = {name: costs[name].mean if name in costs else 0.0 for name in MEASURES}
    return Point(
        changes,
        component,
        configuration,
        estimate([trace.score for trace in traces]),
        estimate([trace.reward for trace in traces]),
        costs,
        () if objective is None else objective.exceeded(means),
    )


def tell_exceeded(point: Point, objective: Objective) -> list[str]:
    """A sentence on each limit that a point exceeds, by its name in the configuration."""
    sentences = []
    for name in point.exceeds:
        cost = point.costs[name]
        low, high = (f"{bound:,.6g}" for bound in cost.ci95)
        sentences.append(
            f"exceeds max_{name}: {cost.mean:,.6g} {name} a run [{low}, {high}], and the limit is "
            f"{objective.limits[name]:,.6g}"
        )
    return sentences


def dominates(one: Point, other: Point) -> bool:
    """Whether a point dominates another one."""
    better = [one.score.mean - other.score.mean]
    better += [other.costs[name].mean - cost.mean for name, cost in one.costs.items()]
    return min(better) >= 0 and max(better) > 0


def dominated(points: Sequence[Point]) -> list[bool]:
    """Whether each point is dominated by another one. The others are the Pareto set; equal points are both in it."""
    return [any(dominates(other, point) for other in points) for point in points]


def rows_of(points: Sequence[Point], kept: int) -> list[dict[str, Any]]:
    """Points as plain data, in the order in which they passed the gate.

    Args:
      kept: number of accepted changes of the run's final configuration.
    """
    rows = []
    for point, is_dominated in zip(points, dominated(points), strict=True):
        costs = {name: point.costs.get(name) for name in MEASURES}
        rows.append(
            {
                "changes": point.changes,
                "component": point.component,
                "configuration": point.configuration,
                "score": dataclasses.asdict(point.score),
                **{name: None if cost is None else dataclasses.asdict(cost) for name, cost in costs.items()},
                "reward": dataclasses.asdict(point.reward),
                "exceeds": list(point.exceeds),
                "dominated": is_dominated,
                "kept": point.changes == kept,
            }
        )
    return rows
