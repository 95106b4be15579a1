"""How well the gains of proposals are known from few labels, with and without local rewards (``search.evidence``).

Proposals of a component are tried on inputs that no local reward was trained on, and every answer is followed to its
global reward. Then most labels are hidden, again and again, and gains are estimated from what is left.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from optimas_jax.core.execution import Job
from optimas_jax.core.selection import LIKELIHOOD, RANDOM
from optimas_jax.core.types import Example, Group, derive_seed
from optimas_jax.core.values import Configuration, value_digest
from optimas_jax.loop.config import RunConfig
from optimas_jax.loop.context import Device, Host
from optimas_jax.loop.local_rewards import groups_not_seen
from optimas_jax.loop.state import State, Trials
from optimas_jax.loop.steps.propose import propose
from optimas_jax.loop.steps.trials import answer, follow, local_scores
from optimas_jax.rewards.scorer import ScoredGroup
from optimas_jax.search.evidence import Evidence, Floats, WeightEvidence, estimate_gains, weight_of_groups

LABELS, LOCAL = "labels alone", "local reward"
RULES = (LABELS, RANDOM, LIKELIHOOD, LOCAL)
_DRAWS = 400  # of the labelled inputs


@dataclasses.dataclass(frozen=True)
class Ranking:
    """How well the proposals of one component are known, by rule (``RULES``), a mean over draws of the labelled inputs.

    Attributes:
      proposals: whose answers differ from the current value's somewhere.
      error: mean squared error of the estimated gains.
      regret: gain of the best proposal minus the gain of the one with the highest estimate.
    """

    proposals: int
    error: Mapping[str, float]
    regret: Mapping[str, float]


def measure_ranking(
    host: Host,
    device: Device,
    config: RunConfig,
    configuration: Configuration,
    reward: str,
    evidence: Sequence[Group],
    examples: Sequence[Example],
    name: str,
    labels: int,
) -> Ranking | None:
    """The ranking of one component's proposals under a configuration; None if fewer than two proposals change anything.

    Args:
      reward: name of the local reward.
      evidence: groups from before, for demonstrations.
      examples: inputs that the local reward was not trained on.
      labels: inputs of a draw on which global rewards are known.
    """
    traces = host.run("base runs", [Job(configuration, example, host.seed) for example in examples])
    runs = [(e, trace) for e, trace in zip(examples, traces, strict=True) if name in trace.steps]
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
    for rule in RULES:
        by = {LABELS: None, LOCAL: reward}.get(rule, rule)
        scores = dict.fromkeys(trials, 0.0)
        if by is not None:
            scores = local_scores(host, device, dataclasses.replace(state, reward=by), name, trials, runs)
        _, local = _differences(trials, scores, keys, ids)
        whole = Evidence(local[several], reward_gains[several], changed[several], tried[several])
        error[rule], regret[rule] = simulate(whole, _known(rule, unseen), labels, host.seed)
    return Ranking(len(several), error, regret)


def _known(rule: str, groups: Sequence[ScoredGroup]) -> WeightEvidence:
    """What groups that the local reward has not seen tell of the weight of the local reward, or of likelihood."""
    if not groups or rule not in (LOCAL, LIKELIHOOD):
        return WeightEvidence()
    return weight_of_groups(
        [(one.example_id, one.rewards, one.scores if rule == LOCAL else one.logliks) for one in groups]
    )


def _differences(
    trials: Trials, scores: Mapping[tuple[str, str], float], keys: Sequence[str], ids: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """[P, N] whether an answer differs from the current value's, whose key comes first, and difference of the scores; 0
    where a value was not tried, because a demonstration of it comes from the input."""
    current, *others = keys
    changed, gains = np.zeros((len(others), len(ids)), bool), np.zeros((len(others), len(ids)))
    for column, example in enumerate(ids):
        for row, key in enumerate(others):
            if (key, example) in trials and (current, example) in trials:
                after, before = trials[key, example], trials[current, example]
                changed[row, column] = after.outputs != before.outputs
                gains[row, column] = scores[key, example] - scores[current, example]
    return changed, gains


def simulate(evidence: Evidence, known: WeightEvidence, labels: int, seed: int) -> tuple[float, float]:
    """Mean squared error of estimated gains, and mean regret, over draws of ``labels`` labelled inputs.

    Args:
      evidence: with every label, of which all but the drawn ones are hidden.
      known: of the weight beforehand.
    """
    truth = _gains(evidence)
    rng = np.random.default_rng(derive_seed(seed, "labelled inputs"))
    inputs = evidence.local.shape[-1]
    drawn = np.argsort(rng.random((_DRAWS, inputs)), axis=-1) < min(labels, inputs)
    errors, regrets = [], []
    for mask in drawn:
        seen = dataclasses.replace(evidence, reward=np.where(mask, evidence.reward, np.nan))
        gain = estimate_gains(seen, known).gain
        errors.append(np.mean((gain - truth) ** 2))
        regrets.append(truth.max() - truth[int(np.argmax(gain))])
    return float(np.mean(errors)), float(np.mean(regrets))


def _gains(evidence: Evidence) -> Floats:
    """[P] mean gain of each proposal over the inputs that it was tried on."""
    counts, tried = evidence.counts, np.asarray(evidence.tried)
    return np.where(counts, evidence.reward, 0.0).sum(-1) / np.maximum(tried.sum(-1), 1)
