"""Race: gains of the proposals of one component on training inputs.

Every proposal is *labelled* on a few inputs: the rest of the system runs on its answer there, up to the global reward.
On other inputs it costs one call of the component, and its local score replaces the global reward, corrected by the
labels (``search.evidence``). All proposals are tried on a few inputs, the better half on more. Scoring changes nothing
except the record of scores on the tape.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from optimas_jax.core.selection import RANDOM, UNTRAINED
from optimas_jax.core.types import digest
from optimas_jax.core.values import value_digest
from optimas_jax.loop.config import OptimizeConfig
from optimas_jax.loop.context import Device, Host
from optimas_jax.loop.state import Proposal, Ranked, Runs, State, Trials, current_trials, examples_seen
from optimas_jax.loop.steps.trials import answer, follow, local_scores
from optimas_jax.rewards.pairs import count_informative
from optimas_jax.search.evidence import Estimate, Evidence, estimate_gains, mean_local
from optimas_jax.search.race import rounds, survivors

_UNTAUGHT = [score for score in UNTRAINED if score != RANDOM]  # scores that are useful without any label


@dataclasses.dataclass(frozen=True)
class Race:
    """Results of a race.

    Attributes:
      ranked: proposals, by the last round that they entered, then by gain, best first.
      evidence: differences to the current value, from which gains are estimated.
      estimate: from ``evidence``.
      trials: all trials, with their global rewards where they are known.
      uses_local_reward: whether some trials are scored by their local score, with its weight.
    """

    ranked: tuple[Ranked, ...]
    evidence: Evidence
    estimate: Estimate
    trials: Trials
    uses_local_reward: bool

    def without_effect(self, proposals: Sequence[Proposal]) -> list[Proposal]:
        """Proposals that answered as the value in use, or as an earlier proposal."""
        ranked = {entry.proposal.digest for entry in self.ranked}
        return [proposal for proposal in proposals if proposal.digest not in ranked]

    def over_whole_runs(self, share: float) -> Race:
        """The race with gains over all runs: on runs that do not reach the component, values make no difference.

        Args:
          share: share of the runs that reach it.
        """

        def scaled(entry: Ranked) -> Ranked:
            labelled = None if entry.labelled_gain is None else entry.labelled_gain * share
            return dataclasses.replace(entry, expected_gain=entry.expected_gain * share, labelled_gain=labelled)

        return dataclasses.replace(self, ranked=tuple(map(scaled, self.ranked)))


def label(
    host: Host,
    config: OptimizeConfig,
    state: State,
    name: str,
    proposals: Sequence[Proposal],
    runs: Runs,
    rollouts: int,
) -> Trials:
    """Tries all proposals on the first ``config.labels`` inputs, and runs the rest of the system on the answers, up to
    the global reward.

    Args:
      runs: training inputs in random order, and the system's runs on them under ``state.configuration``.
      rollouts: Monte Carlo runs of the rest of the system, per answer (paper, Eq. 3).
    """
    labelled = runs[: config.labels]
    answers = answer(host, name, [proposal.value for proposal in proposals], labelled, {})
    return follow(
        host, state, name, current_trials(state, name, labelled, host.system.objective) | answers, labelled, rollouts
    )


def race(
    host: Host,
    device: Device,
    config: OptimizeConfig,
    state: State,
    name: str,
    proposals: Sequence[Proposal],
    labels: Trials,
    runs: Runs,
    rollouts: int,
) -> Race:
    """Ranks proposals. A proposal with the same answers as the current value or an earlier proposal is left out.

    Args:
      labels: result of ``label``, with the same runs.
    """
    current = current_trials(state, name, runs, host.system.objective)
    trials, alive = {**current, **labels}, list(proposals)
    entered: dict[str, int] = {}  # the last round of each proposal
    for number, inputs in enumerate(rounds(len(runs), config.rounds)):
        entered |= dict.fromkeys((proposal.digest for proposal in alive), number)
        answers = answer(host, name, [proposal.value for proposal in alive], runs[:inputs], trials)
        if labels_all(host, config, name):
            answers = follow(host, state, name, answers, runs, rollouts)
        trials |= answers
        evidence = differences(host, device, config, state, name, proposals, trials, runs)
        estimate = estimate_gains(evidence, state.weight_evidence(name))
        gains = mean_local(evidence) if config.ranking == "mean" and config.score != "global" else estimate.gain
        gains = gains - mean_own_costs(state, name, proposals, trials, runs)
        order = sorted(range(len(proposals)), key=lambda row: -gains[row])
        alive = [proposals[row] for row in order if proposals[row] in alive]
        alive = alive[: survivors(len(alive), config.gate_top)]
    uses_local = uses_local_reward(host, device, config, state, name)
    counts = uses_local and (config.ranking == "mean" or bool(estimate.weight))
    if not counts and not labels_all(host, config, name) and config.score != "off":
        why = f"it has fewer than {config.fewest_groups} groups with different rewards"
        if uses_local:
            why = "local scores are not shown to know anything"
        host.progress.line(f"  {name} is ranked by labels alone: {why}")
    ranked = _ranked(state, name, proposals, trials, runs, evidence, estimate, gains, uses_local)
    # Not by the number of inputs: a value is not tried on inputs that it shows as demonstrations.
    ranked.sort(key=lambda entry: (-entered[entry.proposal.digest], -entry.expected_gain))
    return Race(tuple(ranked), evidence, estimate, trials, uses_local)


def labels_all(host: Host, config: OptimizeConfig, name: str) -> bool:
    """Whether every trial gets its global reward: without local rewards, and for a terminal component, whose outputs
    the metric scores for free unless it asks a model."""
    return config.score == "global" or (config.ranking == "corrected" and host.system.scores_at_once(name))


def uses_local_reward(host: Host, device: Device, config: OptimizeConfig, state: State, name: str) -> bool:
    """Whether trials without labels are scored by their local score. Not where every trial is labelled, nor where the
    local reward had too few groups to learn from (the same holds for random numbers, its control). Fitted heads count
    with few groups, too, because they include likelihood."""
    if labels_all(host, config, name) or config.score == "off":
        return False
    if config.score in _UNTAUGHT:
        return True
    settings = device.rewards.scorer.config
    if config.ranking == "mean" or settings.heads == "fitted":
        return True
    return count_informative(state.evidence, name, settings.loss.threshold) >= config.fewest_groups


def differences(
    host: Host,
    device: Device,
    config: OptimizeConfig,
    state: State,
    name: str,
    proposals: Sequence[Proposal],
    trials: Trials,
    runs: Runs,
) -> Evidence:
    """Differences of every proposal to the current value, by input, without the costs of the component's own calls:
    those are known for every trial (``mean_own_costs``).

    Labels are ``seen`` if the local reward may have been trained on one of the two answers.
    """
    current = value_digest(state.configuration[name])
    values = [proposal.digest for proposal in proposals]
    rewards = {key: trial.reward for key, trial in trials.items() if trial.reward is not None}
    uses_local = uses_local_reward(host, device, config, state, name)
    scores = local_scores(host, device, state, name, trials, runs) if uses_local else dict.fromkeys(trials, 0.0)
    learned = examples_seen(state, name) if uses_local and config.score not in _UNTAUGHT else set()

    shape = (len(values), len(runs))
    local, reward = np.zeros(shape), np.full(shape, np.nan)
    changed, tried, seen = np.zeros((3, *shape), bool)
    for column, (example, _) in enumerate(runs):
        before = trials[current, example.id]
        for row, value in enumerate(values):
            after = trials.get((value, example.id))
            tried[row, column] = after is not None
            changed[row, column] = after is not None and after.answers != before.answers
            if after is None or after.answers == before.answers:
                continue
            local[row, column] = scores[value, example.id] - scores[current, example.id]
            reward[row, column] = rewards.get((value, example.id), np.nan) - rewards.get((current, example.id), np.nan)
            reward[row, column] += after.penalty - before.penalty
            answers = {(example.id, digest(outputs)) for trial in (before, after) for outputs in trial.answers}
            seen[row, column] = bool(answers & learned)
    return Evidence(local=local, reward=reward, changed=changed, tried=tried, seen=seen)


def mean_own_costs(state: State, name: str, proposals: Sequence[Proposal], trials: Trials, runs: Runs) -> np.ndarray:
    """[proposals] extra costs of the component's own calls over those with the current value, in score: means over the
    inputs on which a proposal was tried."""
    current = value_digest(state.configuration[name])
    means = []
    for proposal in proposals:
        tried = [example.id for example, _ in runs if (proposal.digest, example.id) in trials]
        more = [
            trials[proposal.digest, example_id].penalty - trials[current, example_id].penalty for example_id in tried
        ]
        means.append(sum(more) / len(more) if more else 0.0)
    return np.array(means)


def _ranked(
    state: State,
    name: str,
    proposals: Sequence[Proposal],
    trials: Trials,
    runs: Runs,
    evidence: Evidence,
    estimate: Estimate,
    gains: np.ndarray,
    uses_local: bool,
) -> list[Ranked]:
    """Proposals whose answers, or their costs, differ from the current value's and from each other's, in the order of
    proposing."""
    ranked: list[Ranked] = []
    answers_so_far: list[dict[str, tuple[tuple[Mapping[str, Any], ...], float]]] = []
    current = value_digest(state.configuration[name])
    extra_costs = mean_own_costs(state, name, proposals, trials, runs)
    for row, proposal in enumerate(proposals):
        tried = {e.id: trials[proposal.digest, e.id] for e, _ in runs if (proposal.digest, e.id) in trials}
        answers = {example_id: (trial.answers, trial.penalty) for example_id, trial in tried.items()}
        dearer = any(trial.penalty != trials[current, example_id].penalty for example_id, trial in tried.items())
        if not (evidence.changed[row].any() or dearer) or answers in answers_so_far:
            continue
        answers_so_far.append(answers)
        labels = int(evidence.labelled[row].sum())
        ranked.append(
            Ranked(
                proposal=proposal,
                expected_gain=float(gains[row]),
                labelled_gain=float(estimate.labelled_gain[row] - extra_costs[row]) if labels else None,
                local_gain=float(np.asarray(evidence.local)[row][np.asarray(evidence.tried)[row]].mean())
                if uses_local
                else None,
                inputs=len(answers),
                labelled=labels,
            )
        )
    return ranked
