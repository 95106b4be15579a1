"""Who takes part in a comparison, by the names that ``launch/compare.py`` knows them by.

Ours search until the budget is used, not for ``config.optimize.iterations``: a comparison is at equal cost.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from optimas_jax.loop.config import EvaluateConfig, OfflineConfig, OptimizeConfig, RunConfig
from optimas_jax.rewards.collect import CollectConfig

PEERS = Path(__file__).parents[2] / "third_party" / "peers"
_PYTHON = PEERS / ".prompt-optimizers" / "bin" / "python"
_ENDLESS = 10_000  # iterations: every one of them uses tokens, so that the budget ends the search
GLOBAL = "-global"  # ends the name of an optimiser of ours without local rewards


class CompareError(ValueError):
    """A comparison that cannot be made; says why."""


@dataclasses.dataclass(frozen=True)
class Ours:
    """The loop of this project.

    Attributes:
      proposers: of ``config.optimize``; empty for those of the configuration.
      score: of ``config.optimize``.
    """

    proposers: str
    score: Literal["local", "global"]

    def config(self, config: RunConfig, seed: int, budget: int) -> RunConfig:
        """The configuration of one run."""
        search = dataclasses.replace(
            config.optimize,
            proposers=self.proposers or config.optimize.proposers,
            score=self.score,
            max_tokens=budget,
            iterations=_ENDLESS,
        )
        return dataclasses.replace(config, seed=seed, optimize=search, evaluate=_ends_only(config))


@dataclasses.dataclass(frozen=True)
class Peer:
    """An optimiser of another project, in an environment of its own.

    Attributes:
      command: program, its script, and arguments; the address of the desk (``compare.desk``) comes last.
    """

    command: tuple[str, ...]

    def config(self, config: RunConfig, seed: int, budget: int) -> RunConfig:
        """The configuration of one run. Of our search it says nothing but the budget: what we search with does not
        change what a peer found."""
        return dataclasses.replace(
            config,
            seed=seed,
            optimize=OptimizeConfig(max_tokens=budget),
            offline=OfflineConfig(),
            collect=CollectConfig(),
            evaluate=_ends_only(config),
        )


def _ends_only(config: RunConfig) -> EvaluateConfig:
    """What each change brought is not compared."""
    return dataclasses.replace(config.evaluate, changes=False)


Optimizer = Ours | Peer

_LISTS = {"ours": "", "opro": "opro", "copro": "copro", "mipro": "mipro", "reflect": "reflect"}
OPTIMIZERS: Mapping[str, Optimizer] = {
    **{name: Ours(proposers, "local") for name, proposers in _LISTS.items()},
    **{name + GLOBAL: Ours(proposers, "global") for name, proposers in _LISTS.items()},
    "random": Ours("random", "global"),
    **{
        f"dspy-{name}": Peer((str(_PYTHON), str(PEERS / "dspy_peer.py"), name)) for name in ("miprov2", "copro", "gepa")
    },
    "textgrad": Peer((str(_PYTHON), str(PEERS / "textgrad_peer.py"))),
}


def find_optimizers(names: Sequence[str]) -> dict[str, Optimizer]:
    """By name, in the order asked for.

    Raises:
      CompareError: for an unknown or repeated name, none at all, or a peer whose environment is not there.
    """
    names = [name.strip() for name in names if name.strip()]
    unknown = [name for name in names if name not in OPTIMIZERS]
    if unknown or not names or len(set(names)) < len(names):
        raise CompareError(
            f"optimizers are {', '.join(names) or 'none'}: name one or more, separated by commas, each once; known: "
            f"{', '.join(OPTIMIZERS)}"
        )
    found = {name: OPTIMIZERS[name] for name in names}
    absent = [name for name, one in found.items() if isinstance(one, Peer) and not Path(one.command[0]).is_file()]
    if absent:
        raise CompareError(
            f"{', '.join(absent)}: the peers' environment is not there ({_PYTHON}): make it with "
            "third_party/peers/install_prompt_optimizers.sh"
        )
    return found
