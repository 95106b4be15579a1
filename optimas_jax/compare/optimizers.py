"""The optimisers of a comparison, by name.

Each of our arms is data: a name, and the settings in which it differs from the configuration. Every optimiser searches
until the budget is used, not for ``config.optimize.iterations``, because a comparison is at equal cost.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optimas_jax.core.shipped import PACKAGE
from optimas_jax.core.text.nearest import did_you_mean
from optimas_jax.loop.config import OfflineConfig, OptimizeConfig, RunConfig
from optimas_jax.rewards.collect import CollectConfig

PEERS = PACKAGE.parent / "third_party" / "peers"  # of a checkout
_PYTHON = PEERS / ".prompt-optimizers" / "bin" / "python"
_ENDLESS = 10_000  # iterations: each uses tokens, so that the budget ends the search
GLOBAL = "-global"  # ends the name of an arm that ranks by the global metric
Settings = Mapping[str, Any]  # path of a field below ``RunConfig`` ("optimize.score") -> value


class CompareError(ValueError):
    """A comparison that cannot be made, with the reason."""


def with_settings(config: Any, settings: Settings) -> Any:
    """Copies a nested frozen dataclass and replaces the values at some paths.

    Args:
      settings: path, fields separated by dots -> value.

    Raises:
      CompareError: for a path without a field.
    """
    for path, value in settings.items():
        name, _, rest = path.partition(".")
        names = [field.name for field in dataclasses.fields(config)]
        if name not in names:
            near = did_you_mean(name, names) or ";"
            raise CompareError(
                f"{type(config).__name__} has no field {name!r} (of {path!r}){near} it has {', '.join(names)}"
            )
        new = with_settings(getattr(config, name), {rest: value}) if rest else value
        config = dataclasses.replace(config, **{name: new})
    return config


@dataclasses.dataclass(frozen=True)
class Ours:
    """An arm: the loop of this project.

    Attributes:
      settings: in which it differs from the configuration.
      order_of: the arm whose components it visits in the same order, with the same seed; "" for its own order.
    """

    settings: Settings = dataclasses.field(default_factory=dict)
    order_of: str = ""

    def config(self, config: RunConfig, seed: int, budget: int, order: Sequence[str] = ()) -> RunConfig:
        """The configuration of one run. ``order``: components of the first iterations."""
        search = {"optimize.max_tokens": budget, "optimize.iterations": _ENDLESS, "optimize.order": ",".join(order)}
        return with_settings(config, {**self.settings, **search, **_common(seed)})


@dataclasses.dataclass(frozen=True)
class Peer:
    """An optimiser of another project, in an environment of its own.

    Attributes:
      command: program, script and arguments; the address of the server (``compare.peer_server``) is appended.
      order_of: "": a peer has an order of its own.
    """

    command: tuple[str, ...]
    order_of: str = ""

    def config(self, config: RunConfig, seed: int, budget: int, order: Sequence[str] = ()) -> RunConfig:
        """The configuration of one run: of our search only the budget, so that a change of our search leaves the
        results of peers valid."""
        search = {
            "optimize": OptimizeConfig(max_tokens=budget),
            "offline": OfflineConfig(),
            "collect": CollectConfig(),
        }
        return with_settings(config, {**search, **_common(seed)})


def _common(seed: int) -> Settings:
    """Settings of every run. The effect of each single change is not compared."""
    return {"seed": seed, "evaluate.changes": False}


Optimizer = Ours | Peer

_BY_METRIC = {"optimize.score": "global"}
ARMS: Mapping[str, Settings] = {
    "ours": {},
    "opro": {"optimize.proposers": "opro"},
    "copro": {"optimize.proposers": "copro"},
    "mipro": {"optimize.proposers": "mipro"},
    "reflect": {"optimize.proposers": "reflect"},
}
OPTIMIZERS: Mapping[str, Optimizer] = {
    **{name: Ours(settings) for name, settings in ARMS.items()},
    **{name + GLOBAL: Ours({**settings, **_BY_METRIC}) for name, settings in ARMS.items()},
    # Controls of ``ours``, each of which differs in one thing: random numbers in place of local rewards; the global
    # metric in their place, with the same candidates and order; and the latter without collected candidates.
    "random": Ours({"optimize.score": "random"}),
    "twin": Ours(_BY_METRIC, order_of="ours"),
    "bare": Ours({**_BY_METRIC, "offline.groups": 0}, order_of="ours"),
    "random-search": Ours({"optimize.proposers": "random", **_BY_METRIC}),
    **{
        f"dspy-{name}": Peer((str(_PYTHON), str(PEERS / "dspy_peer.py"), name))
        for name in ("labeled", "knn", "bootstrap", "miprov2", "copro", "simba", "gepa")
    },
    "textgrad": Peer((str(_PYTHON), str(PEERS / "textgrad_peer.py"))),
    "trace": Peer((str(_PYTHON), str(PEERS / "trace_peer.py"))),
}


def find_optimizers(names: Sequence[str]) -> dict[str, Optimizer]:
    """Optimisers by name, in the order of ``names``.

    Arms that follow the order of another one come last.

    Raises:
      CompareError: for an unknown or repeated name, no name, an arm without the arm whose order it follows, or a peer
        without its environment.
    """
    names = [name.strip() for name in names if name.strip()]
    unknown = [name for name in names if name not in OPTIMIZERS]
    if unknown or not names or len(set(names)) < len(names):
        raise CompareError(
            f"optimizers are {', '.join(names) or 'none'}: name one or more, separated by commas, each once; known: "
            f"{', '.join(OPTIMIZERS)}"
        )
    optimizers = {name: OPTIMIZERS[name] for name in sorted(names, key=lambda name: bool(OPTIMIZERS[name].order_of))}
    lacking = [name for name, optimizer in optimizers.items() if optimizer.order_of not in ("", *names)]
    if lacking:
        leader = optimizers[lacking[0]].order_of
        raise CompareError(f"{', '.join(lacking)} visits components in the order of {leader!r}: name that, too")
    absent = [
        name
        for name, optimizer in optimizers.items()
        if isinstance(optimizer, Peer) and not Path(optimizer.command[0]).is_file()
    ]
    if absent:
        raise CompareError(
            f"{', '.join(absent)}: the peers' environment is not there ({_PYTHON}): make it with "
            "third_party/peers/install_prompt_optimizers.sh of a checkout, and compare there"
        )
    return optimizers
