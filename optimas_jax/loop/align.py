"""Alignment of local rewards with the global reward: on what a search has labelled, and on fresh groups."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Sequence
from typing import Any

from optimas_jax.core.types import Group, StopRun, derive_seed
from optimas_jax.core.usage import Limit, OutOfBudget
from optimas_jax.core.values import Configuration
from optimas_jax.loop.budget import block
from optimas_jax.loop.config import RunConfig
from optimas_jax.loop.context import Device, Host
from optimas_jax.loop.local_rewards import collect_on
from optimas_jax.loop.state import State
from optimas_jax.rewards.alignment import measure_alignment, report_groups
from optimas_jax.rewards.pairs import count_informative
from optimas_jax.rewards.split import part_of

_ALIGNED_AT_ONCE = 8  # inputs of every component in one step


def alignment_of(host: Host, device: Device, config: RunConfig, state: State) -> dict[str, Any]:
    """Alignment of the search's last local reward by component, under its last configuration, on inputs that it was not
    trained on."""
    groups = report_groups(state.evidence, config.offline.shares, state.configuration.digest)
    rows = measure_alignment(device.rewards.scorer, state.reward, host.system, groups)
    return {name: row.to_json() for name, row in rows.items()}


def align(host: Host, device: Device, config: RunConfig, configuration: Configuration, reward: str) -> dict[str, Any]:
    """Measures the alignment of a local reward by component, on fresh groups of inputs that it was not trained on. Each
    candidate has two independent sets of Monte Carlo rewards; the second gives the noise ceiling.

    Args:
      configuration: configuration of all runs.
      reward: name of the local reward.

    Raises:
      StopRun: no group was labelled within ``config.align.tokens`` and ``config.budget``.
    """
    inputs = [e for e in host.splits["train"] if part_of(e.id, config.offline.shares) == "report"]
    random.Random(derive_seed(host.seed, "align")).shuffle(inputs)
    collecting = dataclasses.replace(config.collect, rollouts=2 * config.collect.rollouts)
    twice = dataclasses.replace(config, collect=collecting)
    groups: list[Group] = []
    threshold = config.reward.loss.threshold
    with host.ledger.limit(Limit(tokens=config.align.tokens or math.inf)):
        for begin in range(0, len(inputs), _ALIGNED_AT_ONCE):
            names = [n for n in host.components if count_informative(groups, n, threshold) < config.align.inputs]
            if not names:
                break
            examples = inputs[begin : begin + _ALIGNED_AT_ONCE]
            try:
                with block(host, f"align {config.align.tokens} from {begin}"):
                    groups += collect_on(host, twice, configuration, names, examples, groups)
            except OutOfBudget as reason:
                if not groups:
                    limits = f"config.align.tokens = {config.align.tokens:,} or " if config.align.tokens else ""
                    raise StopRun(
                        f"{limits}config.budget ends alignment before its first groups: raise it, and the same command "
                        "goes on"
                    ) from None
                host.progress.line(f"  stopped: {reason}")
                break
    first, second = (_half_of_rewards(groups, half) for half in (0, 1))
    rows = measure_alignment(device.rewards.scorer, reward, host.system, first, second)
    return {name: row.to_json() for name, row in rows.items()}


def _half_of_rewards(groups: Sequence[Group], half: int) -> list[Group]:
    """Groups with the even (0) or odd (1) Monte Carlo rewards of every candidate."""
    return [
        dataclasses.replace(
            group, candidates=tuple(dataclasses.replace(c, rewards=c.rewards[half::2]) for c in group.candidates)
        )
        for group in groups
    ]
