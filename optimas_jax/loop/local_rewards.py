"""Local rewards of a run: collecting groups, the first training, and further training as the system changes (paper,
sections 4.1 and 4.2)."""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import Any

from optimas_jax.core.folder import events
from optimas_jax.core.running.execution import Job
from optimas_jax.core.selection import UNTRAINED
from optimas_jax.core.types import Example, Group, StopRun, Trace, derive_seed
from optimas_jax.core.usage import Limit, OutOfBudget, Usage
from optimas_jax.core.values import Configuration, Grid, LoraSpace, Models, Prompt, PromptSpace, Value, other_values
from optimas_jax.loop.budget import FIRST_RUNS, block, costs_by_role, hold_final, require
from optimas_jax.loop.config import OptimizeConfig, RunConfig
from optimas_jax.loop.context import Device, Host, report_failures
from optimas_jax.loop.setup.recordings import NO_RECORDINGS, Recordings, complete, without_recorded
from optimas_jax.loop.state import Runs, State
from optimas_jax.loop.steps.caps import above_cap
from optimas_jax.rewards.collect import (
    ROLLOUT_TEMPERATURE,
    Try,
    collect,
    current_tries,
    sample_tries,
    standard_tries,
    value_tries,
)
from optimas_jax.rewards.data import load_groups, save_groups
from optimas_jax.rewards.pairs import count_informative, count_pairs, is_informative, merge_groups
from optimas_jax.rewards.scorer import ScoredGroup
from optimas_jax.rewards.split import part_of
from optimas_jax.rewards.text import text_group
from optimas_jax.search.evidence import WeightEvidence, weight_of_groups
from optimas_jax.search.optimisers.demos import demo_pool, propose_demos

REFRESHED = "refreshed"  # folder of ``refresh`` among a run's groups
_WAVE = 4  # inputs of every component in one step of collecting
_PATIENCE = 16  # inputs without two different candidates after which collecting gives up


@dataclasses.dataclass(frozen=True)
class Collected:
    """Results of collecting.

    Attributes:
      groups: all groups, also with a single candidate.
      reasons: why collecting ended, by component.
    """

    groups: tuple[Group, ...]
    reasons: Mapping[str, str]


def collect_offline(host: Host, config: RunConfig, recordings: Recordings = NO_RECORDINGS) -> Collected:
    """Collects groups of the components under the default configuration, on training inputs in random order. Inputs
    with recorded calls come first, and recorded outputs are not collected again.

    A component is done when it has ``config.offline.groups`` informative groups, when the inputs or its calls
    (``config.offline.calls``) are used up, or when its candidates do not differ. Collecting uses at most
    ``config.offline.share`` of the search's budget.
    """
    configuration = host.system.default_configuration()
    inputs = list(host.splits["train"])
    random.Random(derive_seed(host.seed, "collect")).shuffle(inputs)
    inputs = sorted(inputs, key=lambda example: example.id not in recordings.examples)[: config.offline.inputs]
    groups: list[Group] = list(recordings.groups)
    traces: list[Trace] = []
    reasons = _done(host, config, host.components, groups, recordings) if groups else {}
    expected = Usage()  # cost of the next wave: as the last one
    _hold_expected(host, inputs[:FIRST_RUNS])
    left = host.ledger.left
    with host.ledger.limit(left.share(config.offline.share).within(left.rest(_baseline_to_come(host)))):
        for wave, begin in enumerate(range(0, len(inputs), _WAVE)):
            names = [name for name in host.components if name not in reasons]
            if not names:
                break
            try:
                with block(host, f"collect/{wave}") as allowance:
                    require(host, expected)
                    examples = inputs[begin : begin + _WAVE]
                    runs = _base_runs(host, configuration, examples, recordings)
                    by_name = dict.fromkeys(names, runs)
                    fresh = collect_wave(host, config, configuration, by_name, groups, recordings)
            except OutOfBudget:
                reasons |= dict.fromkeys(names, "its share of the budget is used")
                break
            expected = allowance.used
            traces += [trace for _, trace in runs]
            groups = merge_groups([*groups, *fresh])
            reasons |= _done(host, config, names, groups, recordings)
    report_failures(host, traces)
    return Collected(tuple(groups), {name: reasons.get(name, "no more inputs") for name in host.components})


def _base_runs(
    host: Host, configuration: Configuration, examples: Sequence[Example], recordings: Recordings
) -> list[tuple[Example, Trace]]:
    """Runs of the default configuration: recorded ones where there are any."""
    jobs = [Job(configuration, example, host.seed) for example in examples if example.id not in recordings.runs]
    fresh_runs = iter(host.run("base runs", jobs))
    return [
        (example, recordings.runs[example.id][0] if example.id in recordings.runs else next(fresh_runs))
        for example in examples
    ]


def _hold_expected(host: Host, inputs: Sequence[Example]) -> None:
    """Sets aside the expected cost of baseline, confirmation and final test, from the cost of runs on ``inputs``. Where
    these runs or that cost do not fit the budget, their price stays set aside, which fits."""
    if not host.ledger.budget.is_set:
        return
    configuration, price = host.system.default_configuration(), host.price
    host.ledger.hold(price.baseline + price.final)
    with contextlib.suppress(OutOfBudget):
        with block(host, "first runs") as allowance:
            host.run("first runs", [Job(configuration, example, host.seed) for example in inputs])
        hold_final(host, (costs_by_role(allowance),), len(inputs), price.baseline_runs + price.final_runs)


def _baseline_to_come(host: Host) -> Usage:
    """Price of the search's first validation; nothing with ``config.budget``, where it is set aside already."""
    return Usage() if host.ledger.budget.is_set else host.price.baseline


def collect_again(host: Host, config: RunConfig, state: State, number: int) -> list[Group]:
    """Collects groups of all components under the configuration in use, on fresh training inputs (paper, section
    4.2)."""
    train = host.splits["train"]
    count = min(config.optimize.adapt_inputs, len(train))
    inputs = random.Random(derive_seed(host.seed, "adapt", number)).sample(train, count)
    return collect_on(host, config, state.configuration, host.components, inputs, state.evidence)


def collect_on(
    host: Host,
    config: RunConfig,
    configuration: Configuration,
    names: Sequence[str],
    examples: Sequence[Example],
    known: Sequence[Group],
) -> list[Group]:
    """Collects groups of components (``names``) on examples: runs the system there, then ``collect_wave``."""
    traces = host.run("base runs", [Job(configuration, example, host.seed) for example in examples])
    runs = list(zip(examples, traces, strict=True))
    return collect_wave(host, config, configuration, dict.fromkeys(names, runs), known)


def collect_wave(
    host: Host,
    config: RunConfig,
    configuration: Configuration,
    runs: Mapping[str, Runs],
    known: Sequence[Group],
    recordings: Recordings = NO_RECORDINGS,
) -> list[Group]:
    """Collects groups of components, each on its runs: first the tries of ``_tries``, then prompts with demonstrations
    taken from the best candidates so far.

    Args:
      runs: runs of the system by component.
      known: earlier groups, for demonstrations.
      recordings: recorded calls; their outputs are not tried again, and replace samples.
    """
    search, settings = config.optimize, config.collect

    def follow(tries: Sequence[Try], groups: Sequence[Group]) -> list[Group]:
        return collect(
            host.system,
            configuration,
            tries,
            groups,
            rollouts=settings.rollouts,
            seed=host.seed,
            concurrency=host.concurrency,
            progress=host.progress,
            waiting=host.waiting,
        )

    first: list[Try] = []
    half_filled: list[Group] = []
    for name, pairs in runs.items():
        begun, recorded, beside = complete(recordings, configuration, name, pairs)
        tries = _tries(host, config, configuration, name, pairs)
        first += [*recorded, *without_recorded(tries, beside)]
        half_filled += begun
    groups = follow(first, half_filled)
    if search.pairs == "two":
        return groups
    shown: list[Try] = []
    for name, pairs in runs.items():
        values = _with_demos(host, search, configuration, name, [*known, *groups])
        inputs = [(example, call.inputs) for example, trace in pairs for call in trace.calls_of(name)]
        values = [value for value in values if not above_cap(host, name, value, lambda inputs=inputs: inputs)]
        shown += value_tries(name, pairs, values, count=settings.other_values, seed=host.seed)
    return follow(shown, groups)


def _tries(host: Host, config: RunConfig, configuration: Configuration, name: str, runs: Runs) -> list[Try]:
    """Tries of a component: ``standard_tries``; for ``pairs="two"`` (paper) two samples of the value in use, or for
    listed values one output of the value in use and one of another value."""
    if config.optimize.pairs == "all":
        return standard_tries(host.system, configuration, name, runs, config.collect, host.seed)
    space = host.system.by_name[name].space
    if isinstance(space, Grid | Models):
        others = other_values(space, configuration[name])
        return [
            *current_tries(configuration, name, runs),
            *value_tries(name, runs, others, count=1, seed=host.seed),
        ]
    temperature = ROLLOUT_TEMPERATURE if isinstance(space, LoraSpace) else config.collect.temperature
    return sample_tries(configuration, name, runs, 2, temperature)


def _with_demos(
    host: Host, config: OptimizeConfig, configuration: Configuration, name: str, groups: Sequence[Group]
) -> list[Value]:
    """The current prompt of a component with demonstrations bootstrapped from its candidates so far."""
    component, current = host.system.by_name[name], configuration[name]
    space = component.space
    if not isinstance(space, PromptSpace) or not isinstance(current, Prompt) or not config.demo_sets:
        return []
    pool = demo_pool([group for group in groups if group.component == name], component=component)
    rng = random.Random(derive_seed(host.seed, "collect", name, configuration.digest))
    size = min(config.demo_size, space.max_demos)
    return list(propose_demos(pool, current, size=size, count=config.demo_sets, rng=rng))


def _done(
    host: Host, config: RunConfig, names: Sequence[str], groups: Sequence[Group], recordings: Recordings
) -> dict[str, str]:
    """Why components need no more groups, by component; without those that need more."""
    reasons = {name: _why_done(host, config, name, groups, recordings) for name in names}
    return {name: reason for name, reason in reasons.items() if reason}


def _why_done(host: Host, config: RunConfig, name: str, groups: Sequence[Group], recordings: Recordings) -> str:
    """Why a component needs no more groups, or "". Recorded calls count as calls."""
    of_component = [group for group in groups if group.component == name]
    # A single recorded output alone is no pair yet; with others it counts as a collected one.
    tried = [
        g for g in of_component if len(g.candidates) > 1 or not all(candidate.recorded for candidate in g.candidates)
    ]
    candidates = sum(len(group.candidates) for group in tried)
    calls = sum(recordings.calls_of(group) for group in tried)
    if count_informative(groups, name, config.reward.loss.threshold) >= config.offline.groups:
        return "enough groups with different rewards"
    if config.offline.calls and calls * (1 + len(host.system.descendants(name))) >= config.offline.calls:
        return f"its calls are used (config.offline.calls = {config.offline.calls})"
    if len(tried) >= _PATIENCE and candidates == len(tried):
        return "all its candidates are alike"
    return ""


def train_first(host: Host, device: Device, config: RunConfig, groups: Sequence[Group]) -> tuple[str, dict[str, Any]]:
    """Trains the first local reward; returns its name and metadata (``history``: metrics by epoch)."""
    train = _learnable(config, groups)
    stop = _part(config, groups, "stop") if config.reward.heads == "trained" else []
    return device.rewards.trainer.train(host.system, None, train, stop, epochs=config.reward.epochs, seed=host.seed)


def refresh(
    host: Host, device: Device, config: RunConfig, configuration: Configuration, reward: str, known: Sequence[Group]
) -> str:
    """Collects groups of components under a configuration, such as the last one of a search, within
    ``config.refresh.tokens``, and trains further on them; returns the name of the new local reward. Groups of an
    earlier refresh under the same configuration are training data, too.

    Args:
      configuration: configuration of all runs.
      reward: name of the local reward so far.
      known: earlier groups, on which fitted heads are trained, too.

    Raises:
      StopRun: a component is not tuned, or no group was labelled within ``config.refresh.tokens`` and
        ``config.budget``.
    """
    settings, shares, threshold = config.refresh, config.offline.shares, config.reward.loss.threshold
    names = [*host.components]
    if settings.components != "all":
        names = [name.strip() for name in settings.components.split(",")]
    if unknown := [name for name in names if name not in host.components]:
        raise StopRun(
            f"config.refresh.components names {', '.join(map(repr, unknown))}; tuned are {', '.join(host.components)}"
        )
    inputs = [example for example in host.splits["train"] if part_of(example.id, shares) != "report"]
    random.Random(derive_seed(host.seed, "refresh")).shuffle(inputs)
    fresh = _label(host, config, configuration, names, inputs)
    before = load_groups(host.folder.path / "groups" / REFRESHED) or []
    fresh = merge_groups([*fresh, *(group for group in before if group.configuration == configuration.digest)])
    save_groups(host.folder.path / "groups" / REFRESHED, fresh)
    counts = {name: count_informative(fresh, name, threshold) for name in host.components}
    host.folder.emit(events.Refresh(groups=counts))
    learn, earlier = _learnable(config, fresh), _learnable(config, known)
    groups = [*learn, *earlier] if config.reward.heads == "fitted" else learn
    epochs, seed = config.reward.epochs, derive_seed(host.seed, "refresh")
    name, _ = device.rewards.trainer.train(host.system, reward, groups, (), epochs=epochs, seed=seed)
    return name


def _label(
    host: Host, config: RunConfig, configuration: Configuration, names: Sequence[str], inputs: Sequence[Example]
) -> list[Group]:
    """Collects groups of components on as many inputs as ``config.refresh.tokens`` allow."""
    settings, groups = config.refresh, list[Group]()
    what = f"refresh {settings.tokens} {settings.components} {settings.samples}"
    if settings.samples:
        sampled = dataclasses.replace(config.collect, samples=settings.samples, other_values=0)
        config = dataclasses.replace(config, collect=sampled)
    with host.ledger.limit(Limit(tokens=settings.tokens)):
        for begin in range(0, len(inputs), _WAVE):
            examples = inputs[begin : begin + _WAVE]
            try:
                with block(host, f"{what} from {begin}"):
                    groups += collect_on(host, config, configuration, names, examples, groups)
            except OutOfBudget:
                break
    if not groups:
        raise StopRun(
            f"config.refresh.tokens = {settings.tokens:,} (or config.budget) ends before the first groups: raise it, "
            "and the same command goes on"
        )
    return groups


def adapt(host: Host, device: Device, config: RunConfig, state: State, fresh: Sequence[Group], number: int) -> State:
    """Trains the local reward further, if ``config.optimize.adapt`` asks for it, on fresh groups and a replay buffer.

    ``every`` and ``on_drift`` learn from the labels of this iteration's race; ``on_drift`` only if the local reward
    ordered them badly. ``after_accept`` (paper) collects new groups of all components after an accepted proposal; if
    the budget does not allow that, the local reward is kept.

    Args:
      fresh: groups that the race labelled, already part of ``state.evidence``.
      number: number of the iteration.
    """
    search = config.optimize
    if search.score != "local" or search.adapt == "never":
        return state
    if search.adapt == "after_accept":
        if not state.accepted or state.accepted[-1]["iteration"] != number:
            return state
        try:
            with block(host, f"{number}/adapt"):
                fresh = collect_again(host, config, state, number)
        except OutOfBudget as reason:
            host.progress.line(f"  local rewards are not adapted: {reason}")
            return state
        several = tuple(group for group in fresh if len(group.candidates) > 1)
        examples = {name: [g.example_id for g in fresh if g.component == name] for name in host.components}
        state = dataclasses.replace(state.having_learned(examples), evidence=(*state.evidence, *several))
        fresh = several
    save_groups(host.folder.path / "groups" / f"iteration-{number:04d}", fresh)
    accuracy, pairs = pair_accuracy(host, device, config, state.reward, fresh)
    due = search.adapt != "on_drift" or (pairs > 0 and accuracy < search.drift_accuracy)
    reward = _train_further(host, device, config, state, fresh, number) if due else state.reward
    _report(host, fresh, accuracy, pairs, reward, changed=reward != state.reward)
    if reward == state.reward:
        return state
    known = known_weights(device, reward, state.configuration)
    return dataclasses.replace(state, reward=reward, adaptations=state.adaptations + 1, known=known, weights={})


def _train_further(
    host: Host, device: Device, config: RunConfig, state: State, fresh: Sequence[Group], number: int
) -> str:
    """Trains on ``fresh`` and a replay buffer, or fits heads on everything; returns the name of the new local reward,
    or of the old one if there is nothing to learn."""
    train = _learnable(config, fresh)
    if not train:
        return state.reward
    earlier = _learnable(config, state.evidence[: len(state.evidence) - len(fresh)])
    if config.reward.heads == "trained":
        rng = random.Random(derive_seed(host.seed, "replay", number))
        earlier = rng.sample(earlier, min(config.optimize.buffer, len(earlier)))
    epochs, seed = config.reward.adapt_epochs, derive_seed(host.seed, "adapt", number)
    reward, _ = device.rewards.trainer.train(
        host.system, state.reward, [*train, *earlier], (), epochs=epochs, seed=seed
    )
    return reward


def _learnable(config: RunConfig, groups: Sequence[Group]) -> list[Group]:
    """Groups to train on: informative ones on the inputs for training. Fitted heads have no epoch to choose, and are
    also trained on the inputs reserved for that, and on groups without a pair, which show how far scores differ where
    rewards do not."""
    if config.reward.heads == "trained":
        return _part(config, groups, "train")
    shares = config.offline.shares
    return [g for g in groups if len(g.candidates) > 1 and part_of(g.example_id, shares) != "report"]


def _part(config: RunConfig, groups: Sequence[Group], part: str) -> list[Group]:
    """Informative groups on the inputs of one part (``rewards.split``)."""
    shares, threshold = config.offline.shares, config.reward.loss.threshold
    return [g for g in groups if is_informative(g.rewards, threshold) and part_of(g.example_id, shares) == part]


def known_weights(device: Device, reward: str, configuration: Configuration) -> dict[str, WeightEvidence]:
    """Evidence on the weight of a local reward beside labels (``search.evidence``) by component, from the groups of a
    configuration that it was fitted on; empty for trained heads, which have no held-out scores."""
    return {
        name: weight_of_groups([(group.example_id, group.rewards, group.scores) for group in groups])
        for name, groups in groups_not_seen(device, reward, configuration).items()
    }


def groups_not_seen(device: Device, reward: str, configuration: Configuration) -> dict[str, list[ScoredGroup]]:
    """Groups of a configuration with held-out scores, that is, of heads that were fitted without their input; by
    component, without components that have none."""
    if not reward or reward in UNTRAINED:
        return {}
    held_out = {
        name: [group for group in groups if group.configuration == configuration.digest]
        for name, groups in device.rewards.scorer.held_out(reward).items()
    }
    return {name: groups for name, groups in held_out.items() if groups}


def pair_accuracy(
    host: Host, device: Device, config: RunConfig, reward: str, groups: Sequence[Group]
) -> tuple[float, int]:
    """Pooled pair accuracy of a local reward on groups, and the number of pairs; 0.5 without any."""
    threshold = config.reward.loss.threshold
    groups = [group for group in groups if is_informative(group.rewards, threshold)]
    texts = [text_group(host.system, g.component, g.inputs, [c.outputs for c in g.candidates]) for g in groups]
    scores = device.rewards.scorer.scores(reward, texts)
    counts = [count_pairs(s, g.rewards, threshold) for s, g in zip(scores, groups, strict=True)]
    right, pairs = sum(count[0] for count in counts), sum(count[1] for count in counts)
    return (right / pairs if pairs else 0.5), int(pairs)


def _report(host: Host, fresh: Sequence[Group], accuracy: float, pairs: int, reward: str, *, changed: bool) -> None:
    host.folder.emit(
        events.Adaptation(
            fresh_groups=len(fresh),
            fresh_pairs=pairs,
            pair_accuracy_before=accuracy if pairs else None,
            trained=changed,
            reward=reward,
        )
    )
    summary = f"pair accuracy {accuracy:.2f} on {pairs} fresh pairs" if pairs else "no fresh pairs"
    host.progress.line(f"  local reward {'adapted' if changed else 'kept'}: {summary}")
