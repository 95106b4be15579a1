"""The offline stages: groups under the default configuration, and the first local reward (paper, section 4.2)."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from typing import Any

from optimas_jax.core.system import Job, System, run_many
from optimas_jax.core.types import Group, derive_seed
from optimas_jax.core.values import Configuration, Prompt, PromptSpace, Value
from optimas_jax.loop.config import OfflineConfig, OptimizeConfig
from optimas_jax.loop.context import Run
from optimas_jax.loop.evaluate import report_failures
from optimas_jax.rewards.collect import collect
from optimas_jax.rewards.split import is_held_out
from optimas_jax.search.demos import demo_pool, propose_demos


def collect_offline(run: Run, config: OptimizeConfig) -> list[Group]:
    """Groups of all tunable components under the default configuration."""
    configuration = run.system.default_configuration()
    train = run.splits["train"][: run.config.offline.inputs]
    jobs = [Job(configuration, example, run.config.seed) for example in train]
    with run.progress.bar("base runs", len(jobs)) as advance:
        traces = run_many(run.system, jobs, concurrency=run.config.concurrency, on_done=advance)
    report_failures(run, traces)
    # What a component does shows where the rest of the system can succeed: those inputs first, where not all are used.
    ranked = sorted(zip(train, traces, strict=True), key=lambda pair: -pair[1].score)
    groups = collect(
        run.system,
        configuration,
        {name: ranked[:count] for name, count in _inputs(run.system, run.config.offline).items()},
        run.config.collect,
        seed=run.config.seed,
        concurrency=run.config.concurrency,
        progress=run.progress,
        propose_values=demo_values(run, configuration, config),
    )
    return select_pairs(groups, config.pairs)


def _inputs(system: System, config: OfflineConfig) -> dict[str, int]:
    """Number of inputs that each tunable component is tried on."""
    costs = {name: 1 + len(system.descendants(name)) for name in system.tunable}
    return {
        name: min(config.inputs, max(1, config.calls // cost)) if config.calls else config.inputs
        for name, cost in costs.items()
    }


def demo_values(
    run: Run, configuration: Configuration, config: OptimizeConfig
) -> Callable[[str, Sequence[Group]], list[Value]]:
    """Other values of a prompt space to try while collecting: the current instruction with demonstrations
    bootstrapped from the candidates found so far."""

    def propose(name: str, groups: Sequence[Group]) -> list[Value]:
        space, current = run.system.by_name[name].space, configuration[name]
        if not isinstance(space, PromptSpace) or not isinstance(current, Prompt) or not config.demo_sets:
            return []
        pool = demo_pool(groups, min_reward=config.demo_min_reward)
        rng = random.Random(derive_seed(run.config.seed, "collect", name, configuration.digest))
        size = min(config.demo_size, space.max_demos)
        return list(propose_demos(pool, current, size=size, count=config.demo_sets, rng=rng))

    return propose


def select_pairs(groups: Sequence[Group], pairs: str) -> list[Group]:
    """Groups as they are (``all``), or cut to two candidates, as the paper samples (``two``)."""
    if pairs == "all":
        return list(groups)
    return [dataclasses.replace(group, candidates=group.candidates[:2]) for group in groups]


def train_offline(run: Run, groups: Sequence[Group]) -> tuple[str, dict[str, Any]]:
    """The first local reward, trained on inputs that are not held out."""
    share = run.config.offline.held_out
    train = [group for group in groups if not is_held_out(group.example_id, share)]
    held_out = [group for group in groups if is_held_out(group.example_id, share)]
    return run.engine.trainer.train(
        run.system, None, train, held_out, epochs=run.config.reward.epochs, seed=run.config.seed
    )
