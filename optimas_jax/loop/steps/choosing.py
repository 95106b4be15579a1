"""Choosing one of several outputs for every input: values to propose, and components whose local reward may choose."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from optimas_jax.core.types import Group
from optimas_jax.core.values import Configuration, Grid, Models, PerInstance, Value
from optimas_jax.loop.config import OptimizeConfig, RunConfig
from optimas_jax.loop.context import Device, Host
from optimas_jax.loop.local_rewards import groups_not_seen
from optimas_jax.loop.state import State
from optimas_jax.rewards.alignment import report_groups, why_not_to_choose
from optimas_jax.rewards.scorer import score_groups
from optimas_jax.search.optimisers.choices import per_instance_value


def best_of(config: RunConfig, search: OptimizeConfig, current: Value, reward: str) -> PerInstance | None:
    """Best-of-N of the current value, if ``search.best_of`` is 2 or more."""
    if search.best_of < 2 or not search.chooses or isinstance(current, PerInstance):
        return None
    return PerInstance((current,), reward, samples=search.best_of, temperature=config.collect.temperature)


def choice_of_model(search: OptimizeConfig, space: Grid | Models, current: Value, reward: str) -> PerInstance | None:
    """The choice of a model for every input; None if the configuration excludes it, or without two models."""
    if search.per_instance == "never" or not search.chooses:
        return None
    return per_instance_value(space, current, reward, search.per_instance)


def with_choosers(host: Host, device: Device, config: RunConfig, state: State) -> State:
    """The state with ``State.no_choice``: components that do not choose outputs by their local reward. On groups of the
    configuration in use that it was not trained on, it is not shown to choose better than rules without labels
    (``rewards.alignment.why_not_to_choose``).

    Components are checked where a choice would be proposed, and only for local rewards that labels correct; the
    paper's ranking by their mean trusts them.
    """
    search = config.optimize
    if search.score != "local" or search.ranking == "mean":
        return state
    names = [name for name in host.components if _would_choose(host, config, state, name)]
    no_choice = not_to_choose(host, device, config, state.configuration, state.reward, state.evidence, names)
    return dataclasses.replace(state, no_choice=no_choice)


def not_to_choose(
    host: Host,
    device: Device,
    config: RunConfig,
    configuration: Configuration,
    reward: str,
    evidence: Sequence[Group],
    names: Sequence[str],
) -> dict[str, str]:
    """Components among ``names`` whose outputs a local reward is not shown to choose well, with the reason
    (``rewards.alignment.why_not_to_choose``). The evidence is groups of ``configuration`` on inputs for reports, and
    groups that it was fitted on, with held-out scores."""
    if not names:
        return {}
    reported = report_groups(evidence, config.offline.shares, configuration.digest)
    held_out, reasons = groups_not_seen(device, reward, configuration), {}
    for name in names:
        groups = [group for group in reported if group.component == name and len(group.candidates) > 1]
        scored = score_groups(device.rewards.scorer, host.system, reward, groups)
        reasons[name] = why_not_to_choose([*held_out.get(name, ()), *scored], config.reward.loss.threshold)
    return {name: why for name, why in reasons.items() if why}


def _would_choose(host: Host, config: RunConfig, state: State, name: str) -> bool:
    search, current = config.optimize.for_component(name), state.configuration[name]
    space = host.system.by_name[name].space
    models = isinstance(space, Grid | Models) and choice_of_model(search, space, current, state.reward) is not None
    return models or best_of(config, search, current, state.reward) is not None
