"""Which inputs local rewards are trained on: the one rule against leakage."""

from __future__ import annotations

from optimas_jax.core.types import derive_seed


def is_held_out(example_id: str, share: float) -> bool:
    """Whether an input belongs to the held-out part: the same answer in every round, whatever the component."""
    return derive_seed("held-out", example_id) < share * 2**32
