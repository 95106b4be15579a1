"""Settings of a run that has hooks: an own proposer and an own local reward stand in its configuration by name."""

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
    """Hooks as they are given to a run; without any, those that do nothing.

    Raises:
      HookError: it is something else.
    """
    hooks = Hooks() if hooks is None else hooks
    if not isinstance(hooks, Hooks):
        raise HookError(f"hooks is a {type(hooks).__name__}, expected Hooks(propose=..., pick=..., ...)")
    return hooks


def with_hooks(config: RunConfig, hooks: Hooks) -> RunConfig:
    """The configuration with the names of own proposers, behind the others where it does not name them itself, and of
    an own local reward.

    Raises:
      ConfigError: it names an own function that there is not, or another score than an own local reward.
    """
    search, given = config.optimize, [f"{OWN}{name}" for name in hooks.proposers]
    named = proposer_names(search.proposers)
    if unknown := [name for name in named if name.startswith(OWN) and name not in given]:
        raise ConfigError(
            f"config.optimize.proposers names {', '.join(unknown)}; own proposers are {', '.join(given) or 'none'}: "
            "hooks=Hooks(propose={NAME: function}), or HOOKS in a configuration file, gives one"
        )
    own = hooks.local_reward is not None
    if own and search.score not in ("local", OWN_REWARD):
        raise ConfigError(
            f"config.optimize.score is {search.score!r}, and there is an own local reward, which takes the place of "
            "'local': leave one of them out"
        )
    if not own and search.score == OWN_REWARD:
        raise ConfigError(
            "config.optimize.score is 'own', and there is no own local reward: hooks=Hooks(local_reward=function), or "
            "HOOKS in a configuration file, gives one"
        )
    proposers = ",".join([*named, *(name for name in given if name not in named)])
    if proposers == ",".join(named):
        proposers = search.proposers
    score = OWN_REWARD if own else search.score
    if (proposers, score) == (search.proposers, search.score):
        return config
    return dataclasses.replace(config, optimize=dataclasses.replace(search, proposers=proposers, score=score))
