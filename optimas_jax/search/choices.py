"""Values that can be listed: grids of hyper-parameters and named models."""

from __future__ import annotations

from optimas_jax.core.values import Grid, Models, Value


def other_values(space: Grid | Models, current: Value) -> list[Value]:
    """Every value of the space but the current one, in the order of the space."""
    return [value for value in space.values() if value != current]
