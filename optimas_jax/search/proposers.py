"""The optimisers of prompts by the names that ``config.optimize.proposers`` knows them by."""

from __future__ import annotations

from collections.abc import Mapping

from optimas_jax.search import copro, demos, mipro, opro, random_search, reflect
from optimas_jax.search.task import Proposer

PROPOSERS: Mapping[str, Proposer] = {
    "demos": demos.propose,
    "opro": opro.propose,
    "copro": copro.propose,
    "mipro": mipro.propose,
    "reflect": reflect.propose,
    "random": random_search.propose,
}


def proposer_names(text: str) -> tuple[str, ...]:
    """Names separated by commas.

    Raises:
      ValueError: for an unknown name, a repeated one, or none.
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    unknown = [name for name in names if name not in PROPOSERS]
    if unknown or not names or len(set(names)) < len(names):
        raise ValueError(
            f"proposers is {text!r}: name one or more, separated by commas, each once; known: {', '.join(PROPOSERS)}"
        )
    return names
