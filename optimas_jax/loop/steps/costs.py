"""Costs of runs in the results."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from optimas_jax.core.objective import Objective
from optimas_jax.core.schema import to_dict
from optimas_jax.core.types import Trace
from optimas_jax.loop.context import Host
from optimas_jax.search.pareto import costs_of


def objective_fields(
    host: Host,
    optimized: Sequence[Sequence[Trace]],
    baseline: Sequence[Sequence[Trace]],
    gain: Mapping[str, Any],
) -> dict[str, Any]:
    """The field ``objective`` of results: settings of the objective, gain, and costs of runs on the evaluated examples;
    empty without an objective.

    Args:
      optimized, baseline: runs of both sides, by repeat.
      gain: gain of ``Trace.reward``.
    """
    objective = host.system.objective or Objective()
    if objective == Objective():
        return {}
    sides = {"baseline": baseline, "optimized": optimized}
    costs = {
        name: costs_of(list(itertools.chain(*repeats)), seconds=not host.shared_engine)
        for name, repeats in sides.items()
    }
    return {
        "objective": {
            "settings": to_dict(objective),
            "gain": gain,
            "costs": {
                name: {measure: dataclasses.asdict(cost) for measure, cost in side.items()}
                for name, side in costs.items()
            },
        }
    }
