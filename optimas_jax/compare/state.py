"""The state of a search at its budget: changes accepted later do not count."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from optimas_jax.core.values import Configuration
from optimas_jax.loop.evaluate import after_each

Point = Mapping[str, Any]  # of a curve: tokens, system_runs, val_score and more (``loop.budget``)


@dataclasses.dataclass(frozen=True)
class SearchState:
    """The result of a search.

    Attributes:
      configuration: to be tested.
      val_start: validation score of the default configuration, or of the first candidate of a peer; None without one.
      val_score: validation score of ``configuration``; None if it was not measured.
      tokens: used when the search reached ``configuration``.
      changes: accepted changes that led to it; None for peers, which have candidates instead.
      later: changes accepted beyond the budget, left out.
      chosen: example id -> configuration, of a peer that chooses prompts for each input; ``configuration`` for others.
    """

    configuration: Configuration
    val_start: float | None
    val_score: float | None
    tokens: int
    changes: int | None = None
    later: int = 0
    chosen: Mapping[str, Configuration] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """All but the configurations."""
        fields = [field.name for field in dataclasses.fields(self) if field.name not in ("configuration", "chosen")]
        return {name: getattr(self, name) for name in fields}


def within(curve: Sequence[Point], budget: int) -> list[Point]:
    """The points of a curve with at most ``budget`` tokens; all for 0."""
    return [point for point in curve if not budget or point["tokens"] <= budget]


def state_at(
    budget: int, curve: Sequence[Point], accepted: Sequence[Mapping[str, Any]], default: Configuration
) -> SearchState:
    """The state of our search at ``budget`` tokens: the last one that was accepted within them.

    Args:
      curve: one point at ``start``, then one point at ``accept`` for each accepted change, in order.
      accepted: changes, as in ``optimized.json``.
    """
    accepts = [point for point in curve if point["at"] == "accept"]
    accepts = accepts[len(accepts) - len(accepted) :]  # a resumed journal may hold points of an earlier attempt
    if len(accepts) < len(accepted):
        raise ValueError(f"{len(accepted)} accepted changes, and {len(accepts)} points of the curve at which they were")
    changes = len(within(accepts, budget))
    point = ([curve[0], *accepts])[changes]
    configuration = after_each(default, accepted)[changes]
    later = len(accepted) - changes
    return SearchState(configuration, curve[0]["val_score"], point["val_score"], point["tokens"], changes, later)
