"""Settings of a run with hooks: its configuration names own proposers and an own local reward."""

from __future__ import annotations

import dataclasses
from typing import Any

from optimas_jax.core.schema import ConfigError
from optimas_jax.core.selection import OWN_REWARD
from optimas_jax.loop.config import RunConfig
from optimas_jax.search.hooks import HookError, Hooks
from optimas_jax.search.optimisers.registry import OWN, proposer_names


def hooks_of(benchmark: Any) -> Hooks:
    """The hooks of a benchmark (``HOOKS``); raises as ``checked_hooks``."""
    return checked_hooks(getattr(benchmark, "HOOKS", None))


def checked_hooks(hooks: Any) -> Hooks:
    """Checks the hooks of a run; for None, hooks that do nothing.

    Raises:
      HookError: it is something else.
    """
    hooks = Hooks() if hooks is None else hooks
    if not isinstance(hooks, Hooks):
        raise HookError(f"hooks is a {type(hooks).__name__}, expected Hooks(propose=..., pick=..., ...)")
    return hooks


def with_hooks(config: RunConfig, hooks: Hooks) -> RunConfig:
    """The configuration with the names of own proposers and of an own local reward. Own proposers that it does not name
    itself come after the others.

    Raises:
      ConfigError: it names a missing own function, or another score beside an own local reward.
    """
    search, defined = config.optimize, [f"{OWN}{name}" for name in hooks.proposers]
    named = proposer_names(search.proposers)
    if unknown := [name for name in named if name.startswith(OWN) and name not in defined]:
        raise ConfigError(
            f"config.optimize.proposers names {', '.join(unknown)}; own proposers are {', '.join(defined) or 'none'}: "
            "hooks=Hooks(propose={NAME: function}), or HOOKS in a configuration file, gives one"
        )
    has_own_reward = hooks.local_reward is not None
    if has_own_reward and search.score not in ("local", OWN_REWARD):
        raise ConfigError(
            f"config.optimize.score is {search.score!r}, and there is an own local reward, which takes the place of "
            "'local': leave one of them out"
        )
    if not has_own_reward and search.score == OWN_REWARD:
        raise ConfigError(
            "config.optimize.score is 'own', and there is no own local reward: hooks=Hooks(local_reward=function), or "
            "HOOKS in a configuration file, gives one"
        )
    proposers = ",".join([*named, *(name for name in defined if name not in named)])
    if proposers == ",".join(named):
        proposers = search.proposers
    score = OWN_REWARD if has_own_reward else search.score
    if (proposers, score) == (search.proposers, search.score):
        return config
    return dataclasses.replace(config, optimize=dataclasses.replace(search, proposers=proposers, score=score))
