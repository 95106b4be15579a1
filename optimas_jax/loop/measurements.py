"""Measures the use of local rewards after a search, against rules that need none: in choosing among several outputs of
a component, and in ranking proposals from few labels (``search.evidence``).

For the ranking, proposals are tried on inputs that no local reward was trained on, and the rest of the system runs on
every answer, up to the global reward. Then most labels are hidden, again and again, and gains are estimated from the
others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from optimas_jax.core.running.execution import Job
from optimas_jax.core.selection import LIKELIHOOD, MAJORITY, RANDOM
from optimas_jax.core.types import Example, Group, StopRun, derive_seed
from optimas_jax.core.values import Configuration, PerInstance, value_digest
from optimas_jax.loop.context import Host, Run
from optimas_jax.loop.local_rewards import groups_not_seen
from optimas_jax.loop.state import State, Trials
from optimas_jax.loop.steps.propose import propose
from optimas_jax.loop.steps.trials import answer, follow, local_scores
from optimas_jax.rewards.scorer import ScoredGroup
from optimas_jax.search.evidence import Evidence, Floats, WeightEvidence, estimate_gains, weight_of_groups

ONE, LABELS, LOCAL = "one output", "labels alone", "local reward"
CHOICE_RULES = (ONE, RANDOM, MAJORITY, LIKELIHOOD, LOCAL)
RANKING_RULES = (LABELS, RANDOM, LIKELIHOOD, LOCAL)
_DRAWS = 400  # random choices of the labelled inputs


def measure_choices(
    host: Host,
    configuration: Configuration,
    name: str,
    reward: str,
    examples: Sequence[Example],
    *,
    samples: int,
    temperature: float,
) -> dict[str, list[float]]:
    """Global scores of best-of-N by rule (``CHOICE_RULES``). A rule chooses among the component's own output and
    ``samples - 1`` further samples; the first rule always keeps the own output. All rules choose among the same
    outputs, and the rest of the system runs on the chosen output.

    Args:
      configuration: values of all components. Where the component is best-of-N already, the value that it samples from
        is used.
      reward: name of the local reward.
      temperature: temperature of the samples.

    Raises:
      StopRun: the component chooses among several values, not samples of one.
    """
    value = configuration[name]
    if isinstance(value, PerInstance):
        value, *others = value.values
        if others:
            raise StopRun(f"{name} chooses among values for every input: best-of-N is of a single one")
        configuration = configuration.replace(name, value)
    chosen = {RANDOM: RANDOM, MAJORITY: MAJORITY, LIKELIHOOD: LIKELIHOOD, LOCAL: reward}
    tried = {rule: PerInstance((value,), by, samples, "argmax", temperature) for rule, by in chosen.items()}
    base_runs = host.run(ONE, [Job(configuration, example, host.seed) for example in examples])
    scores = {ONE: [trace.score for trace in base_runs]}
    for rule, choice in tried.items():
        changed = configuration.replace(name, choice)
        jobs = [
            Job(changed, example, host.seed, host.system.kept(trace, name))
            for example, trace in zip(examples, base_runs, strict=True)
        ]
        scores[rule] = [trace.score for trace in host.run(f"{name}: {rule}", jobs)]
    return scores


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Quality of the ranking of one component's proposals, by rule (``RANKING_RULES``): means over draws of the
    labelled inputs.

    Attributes:
      proposals: number of proposals with some answer that differs from the current value's.
      error: mean squared error of the estimated gains.
      regret: gain of the best proposal minus the gain of the one with the highest estimate.
    """

    proposals: int
    error: Mapping[str, float]
    regret: Mapping[str, float]


def measure_ranking(
    run: Run,
    configuration: Configuration,
    reward: str,
    evidence: Sequence[Group],
    examples: Sequence[Example],
    name: str,
    labels: int,
) -> Ranking | None:
    """Measures the ranking of one component's proposals under a configuration; None if fewer than two proposals change
    anything.

    Args:
      run: a run; its ``config.optimize`` has the settings of proposers.
      reward: name of the local reward.
      evidence: earlier groups, for demonstrations.
      examples: inputs on which the local reward was not trained.
      labels: number of inputs of a draw with known global rewards.
    """
    host, device, config = run.host, run.device, run.config
    traces = host.run("base runs", [Job(configuration, example, host.seed) for example in examples])
    runs = [(e, trace) for e, trace in zip(examples, traces, strict=True) if trace.reaches(name)]
    state = State(configuration, reward, tuple(evidence), ())
    seed = derive_seed(host.seed, "ranking", name)
    proposals, _ = propose(host, device, config, config.optimize, state, name, runs, seed)
    values, current = [proposal.value for proposal in proposals], configuration[name]
    trials = follow(host, state, name, answer(host, name, [current, *values], runs, {}), runs, 1)
    ids, keys = [example.id for example, _ in runs], [value_digest(value) for value in (current, *values)]
    rewards = {key: trial.reward or 0.0 for key, trial in trials.items()}
    changed, reward_gains = _differences(trials, rewards, keys, ids)
    several = np.flatnonzero(changed.any(-1))
    if len(several) < 2:
        return None
    tried = np.array([[(key, example) in trials for example in ids] for key in keys[1:]])
    unseen = groups_not_seen(device, reward, configuration).get(name, [])
    error, regret = {}, {}
    for rule in RANKING_RULES:
        by = {LABELS: None, LOCAL: reward}.get(rule, rule)
        scores = dict.fromkeys(trials, 0.0)
        if by is not None:
            scores = local_scores(host, device, dataclasses.replace(state, reward=by), name, trials, runs)
        _, local = _differences(trials, scores, keys, ids)
        whole = Evidence(local[several], reward_gains[several], changed[several], tried[several])
        error[rule], regret[rule] = simulate(whole, _known(rule, unseen), labels, host.seed)
    return Ranking(len(several), error, regret)


def _known(rule: str, groups: Sequence[ScoredGroup]) -> WeightEvidence:
    """Evidence on the weight of the local reward, or of likelihood, from groups with held-out scores."""
    if not groups or rule not in (LOCAL, LIKELIHOOD):
        return WeightEvidence()
    return weight_of_groups(
        [(group.example_id, group.rewards, group.scores if rule == LOCAL else group.logliks) for group in groups]
    )


def _differences(
    trials: Trials, scores: Mapping[tuple[str, str], float], keys: Sequence[str], ids: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Differences of answers to the current value's, whose key is the first of ``keys``.

    Returns:
      [P, N] whether the answers differ, and [P, N] difference of the scores; 0 where a value was not tried, because one
      of its demonstrations comes from the input.
    """
    current, *others = keys
    changed, gains = np.zeros((len(others), len(ids)), bool), np.zeros((len(others), len(ids)))
    for column, example in enumerate(ids):
        for row, key in enumerate(others):
            if (key, example) in trials and (current, example) in trials:
                after, before = trials[key, example], trials[current, example]
                changed[row, column] = after.answers != before.answers
                gains[row, column] = scores[key, example] - scores[current, example]
    return changed, gains


def simulate(evidence: Evidence, known: WeightEvidence, labels: int, seed: int) -> tuple[float, float]:
    """Mean squared error of estimated gains, and mean regret, over draws of ``labels`` labelled inputs.

    Args:
      evidence: differences with all labels; all labels but the drawn ones are hidden.
      known: earlier evidence on the weight of the local reward.
    """
    truth = _gains(evidence)
    rng = np.random.default_rng(derive_seed(seed, "labelled inputs"))
    inputs = evidence.local.shape[-1]
    drawn = np.argsort(rng.random((_DRAWS, inputs)), axis=-1) < min(labels, inputs)
    errors, regrets = [], []
    for mask in drawn:
        visible = dataclasses.replace(evidence, reward=np.where(mask, evidence.reward, np.nan))
        gain = estimate_gains(visible, known).gain
        errors.append(np.mean((gain - truth) ** 2))
        regrets.append(truth.max() - truth[int(np.argmax(gain))])
    return float(np.mean(errors)), float(np.mean(regrets))


def _gains(evidence: Evidence) -> Floats:
    """[P] mean gain of each proposal over the inputs that it was tried on."""
    counts, tried = evidence.counts, np.asarray(evidence.tried)
    return np.where(counts, evidence.reward, 0.0).sum(-1) / np.maximum(tried.sum(-1), 1)
