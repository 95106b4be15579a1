"""What the benchmarks' systems have in common."""

from __future__ import annotations

from collections.abc import Sequence

from optimas_jax.llm.component import LanguageModel


def tuned_by_weights(weights: str, names: Sequence[str]) -> frozenset[str]:
    """The names in ``weights``, which are separated by commas.

    Args:
      names: LLM components that may be named.

    Raises:
      ValueError: for another name.
    """
    tuned = frozenset(name.strip() for name in weights.split(",") if name.strip())
    unknown = sorted(tuned - set(names))
    if unknown:
        raise ValueError(
            f"weights of {', '.join(unknown)}: there is no such LLM component; there are {', '.join(names)}"
        )
    return tuned


def stops(language_model: LanguageModel, end: str) -> tuple[str, ...]:
    """Where an answer ends besides the model's own end: ``end`` for a text to continue, which small models do not
    end themselves; nowhere for a chat."""
    return (end,) if language_model.style == "text" else ()
