"""Small systems without a language model, and groups, for tests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from optimas_jax.core.component import Component
from optimas_jax.core.system import System
from optimas_jax.core.types import Candidate, Example, Group, freeze
from optimas_jax.core.values import Grid, Hyperparameters


def tool(
    name: str, inputs: tuple[str, ...], function: Callable[..., Any], *, grid: tuple[int, ...] = (), delay: float = 0.0
) -> Component:
    """A component that computes one field, named like itself, from its inputs (and its setting ``x``, if tunable)."""

    async def run(fields: Mapping[str, Any], value: Hyperparameters | None, context: Any) -> Mapping[str, Any]:
        await asyncio.sleep(delay)
        arguments = [fields[field] for field in inputs]
        return {f"{name}_out": function(*arguments, *([value["x"]] if value is not None else []))}

    return Component(
        name=name,
        description=f"Computes {name}.",
        inputs=inputs,
        outputs=(f"{name}_out",),
        run=run,
        space=Grid({"x": grid}) if grid else None,
        default=Hyperparameters({"x": grid[0]}) if grid else None,
    )


def example(name: str = "e", split: str = "train", **inputs: Any) -> Example:
    return Example(name, inputs or {"q": 1}, {"answer": 1}, split)


def system(*components: Component, output: str, metric: Callable[..., float] | None = None) -> System:
    return System(
        components=components,
        input_fields=("q",),
        output_fields=(output,),
        metric=metric or (lambda outputs, gold: float(outputs[output])),
    )


def group(
    *candidates: tuple[Mapping[str, Any], float], component: str = "a", name: str = "e", inputs: Any = None
) -> Group:
    """A group from (outputs, reward) pairs; the first candidate is the current value's."""
    group_candidates = tuple(
        Candidate(freeze(outputs), f"sampled:{index}" if index else "current", (reward,))
        for index, (outputs, reward) in enumerate(candidates)
    )
    return Group(component, name, freeze(inputs or {"q": name}), group_candidates)
