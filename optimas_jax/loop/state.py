"""State of the search and data of an iteration: frozen, passed from step to step."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from optimas_jax.core.cost import total
from optimas_jax.core.objective import Objective
from optimas_jax.core.types import Call, Candidate, Example, Group, Trace, derive_seed, digest
from optimas_jax.core.usage import Usage
from optimas_jax.core.values import Configuration, Prompt, Value, plain_values, value_digest
from optimas_jax.search.evidence import WeightEvidence
from optimas_jax.search.optimisers.registry import FEEDBACK
from optimas_jax.search.optimisers.templates import ScoredInstruction
from optimas_jax.search.pareto import Point

Runs = Sequence[tuple[Example, Trace]]


@dataclasses.dataclass(frozen=True)
class Proposal:
    """A candidate value of one component.

    Attributes:
      kind: the optimiser that wrote it.
      value: replacement of the component's current value.
    """

    kind: str
    value: Value

    @property
    def digest(self) -> str:
        return value_digest(self.value)


@dataclasses.dataclass(frozen=True)
class Trial:
    """A component's answers with one value on one example.

    Attributes:
      value: value of the component.
      answers: outputs on the inputs of each of its calls in the run of the value in use; empty outputs where a call
        failed.
      rewards: global reward of each Monte Carlo run of the rest of the system; empty without runs.
      calls: calls that returned the answers; empty for answers of the run itself.
      penalty: cost of these calls in score, where costs are part of the objective.
    """

    value: Value
    answers: tuple[Mapping[str, Any], ...]
    rewards: tuple[float, ...] = ()
    calls: tuple[Call, ...] = dataclasses.field(default=(), compare=False)
    penalty: float = 0.0

    @property
    def reward(self) -> float | None:
        """Mean global reward (paper, Eq. 3), or None where it is not known."""
        return sum(self.rewards) / len(self.rewards) if self.rewards else None


Trials = Mapping[tuple[str, str], Trial]  # by digest of the value and id of the example


@dataclasses.dataclass(frozen=True)
class Ranked:
    """A proposal with its evidence on training inputs.

    Attributes:
      proposal: the proposal.
      expected_gain: estimated gain of the global reward, which ranks proposals (``search.evidence``).
      labelled_gain: mean difference of the known global rewards alone; None without any.
      local_gain: mean difference of local scores; None where no local reward is used.
      inputs: number of inputs that it was tried on.
      labelled: number of inputs with a known global reward.
    """

    proposal: Proposal
    expected_gain: float
    labelled_gain: float | None
    local_gain: float | None
    inputs: int
    labelled: int


@dataclasses.dataclass(frozen=True)
class LabelUse:
    """Number and precision of the labels of a component's races, over all iterations.

    Attributes:
      labelled_runs: answers followed to their global reward.
      effective_runs: labelled runs that give the same precision without the local reward (``search.evidence``).
      local_reward: whether trials without labels were scored by a local reward, with the weight that labels support,
        which may be 0 (then ``effective_runs`` are the labelled ones); False where only labels rank.
    """

    labelled_runs: int = 0
    effective_runs: float = 0.0
    local_reward: bool = False

    def __add__(self, other: LabelUse) -> LabelUse:
        return LabelUse(
            self.labelled_runs + other.labelled_runs,
            self.effective_runs + other.effective_runs,
            self.local_reward or other.local_reward,
        )


@dataclasses.dataclass(frozen=True)
class State:
    """State of the search.

    Attributes:
      configuration: the accepted configuration.
      reward: name of the local reward; empty without one.
      evidence: all groups, each with the digest of its configuration.
      val_traces: validation runs under ``configuration``.
      train_traces: training runs under ``configuration``, by id of the example.
      accepted: a summary of each accepted proposal.
      visits: iterations spent on each component.
      gains: gain of the validation score of every tested proposal, by component; 0 for a refused one.
      history: instructions tried under ``configuration`` with their estimated global reward, by component.
      refused: digests of the configurations that the gate refused as replacements of this one.
      known: statistics of local scores against global rewards on the groups that ``reward`` was fitted on, by component
        (``loop.local_rewards.known_weights``).
      weights: the same statistics on the labels of races since, under ``configuration`` and ``reward``.
      no_choice: why components do not choose outputs by their local reward, by component (``loop.steps.choosing``).
      label_use: number and precision of the labels, by component.
      tried_rules: digests of the prompts with a rule from feedback that were proposed, by component.
      dropped: numbers of rejected answers and values, by component and reason.
      learned: ids of the examples whose answers local rewards may have been trained on, by component, including those
        on which all answers were alike.
      adaptations: number of adaptations of local rewards so far.
      costs: costs of the validation runs, by role, under the default configuration and after each accepted proposal.
      front: the configurations that passed the gate, the start first.
    """

    configuration: Configuration
    reward: str
    evidence: tuple[Group, ...]
    val_traces: tuple[Trace, ...]
    train_traces: Mapping[str, Trace] = dataclasses.field(default_factory=dict)
    accepted: tuple[Mapping[str, Any], ...] = ()
    visits: Mapping[str, int] = dataclasses.field(default_factory=dict)
    gains: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    history: Mapping[str, tuple[ScoredInstruction, ...]] = dataclasses.field(default_factory=dict)
    refused: frozenset[str] = frozenset()
    known: Mapping[str, WeightEvidence] = dataclasses.field(default_factory=dict)
    weights: Mapping[str, WeightEvidence] = dataclasses.field(default_factory=dict)
    no_choice: Mapping[str, str] = dataclasses.field(default_factory=dict)
    label_use: Mapping[str, LabelUse] = dataclasses.field(default_factory=dict)
    tried_rules: Mapping[str, frozenset[str]] = dataclasses.field(default_factory=dict)
    dropped: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)
    learned: Mapping[str, frozenset[str]] = dataclasses.field(default_factory=dict)
    adaptations: int = 0
    costs: tuple[Mapping[str, Usage], ...] = ()
    front: tuple[Point, ...] = ()

    def visited(self, name: str) -> State:
        """The state after one more iteration on a component."""
        return dataclasses.replace(self, visits={**self.visits, name: self.visits.get(name, 0) + 1})

    def having_tried_rules(self, name: str, proposals: Iterable[Proposal]) -> State:
        """The state after an iteration with these proposals."""
        new = frozenset(proposal.digest for proposal in proposals if proposal.kind == FEEDBACK)
        if not new:
            return self
        return dataclasses.replace(
            self, tried_rules={**self.tried_rules, name: self.tried_rules.get(name, frozenset()) | new}
        )

    def having_learned(self, examples: Mapping[str, Iterable[str]]) -> State:
        """The state after local rewards of components may have been trained on answers to these examples."""
        more = {name: self.learned.get(name, frozenset()) | set(ids) for name, ids in examples.items()}
        return dataclasses.replace(self, learned={**self.learned, **more})

    def weight_evidence(self, name: str) -> WeightEvidence:
        """Evidence on the weight of a component's local reward beside labels (``search.evidence``)."""
        return self.known.get(name, WeightEvidence()) + self.weights.get(name, WeightEvidence())

    def gated(self, name: str, gain: float) -> State:
        """The state after the gate tested one more proposal of a component."""
        return dataclasses.replace(self, gains={**self.gains, name: (*self.gains.get(name, ()), gain)})

    def refusing(self, name: str, value: Value, why: str) -> State:
        """The state after the gate refused a value under the current configuration. The reason ``why`` is kept in the
        history that proposers read."""
        digests = self.refused | {self.configuration.replace(name, value).digest}
        texts = {plain.instruction for plain in plain_values(value) if isinstance(plain, Prompt)}
        tried = tuple(
            dataclasses.replace(item, refused=why) if item.instruction in texts else item
            for item in self.history.get(name, ())
        )
        return dataclasses.replace(self, refused=digests, history={**self.history, name: tried})

    def is_refused(self, name: str, value: Value) -> bool:
        """Whether the gate has refused this value under the current configuration."""
        return self.configuration.replace(name, value).digest in self.refused


def current_trials(
    state: State, name: str, runs: Runs, objective: Objective | None = None
) -> dict[tuple[str, str], Trial]:
    """The current value's trials, from the runs of the system; one Monte Carlo run of each is known."""
    value = state.configuration[name]
    trials = {}
    for example, trace in runs:
        calls = trace.calls_of(name)
        outputs = tuple(call.outputs for call in calls)
        trials[value_digest(value), example.id] = Trial(
            value, outputs, (trace.reward,), penalty=penalty_of(calls, objective)
        )
    return trials


def penalty_of(calls: Sequence[Call], objective: Objective | None) -> float:
    """Cost of calls in score, by the weights of the objective."""
    return 0.0 if objective is None else objective.penalty(total(call.cost for call in calls))


def groups_of_trials(state: State, name: str, trials: Trials, runs: Runs, most: int) -> list[Group]:
    """Labelled trials as groups, one per input, for training local rewards. The current value's answer comes first; of
    more than ``most`` different answers a random part is taken. Inputs on which the component was called several times
    have no group, because the reward belongs to no single answer.

    Args:
      runs: inputs of the groups, in their order.
    """
    current = value_digest(state.configuration[name])
    groups = []
    for example, trace in runs:
        calls = trace.calls_of(name)
        if len(calls) != 1:
            continue
        labelled = {value: trial for (value, example_id), trial in trials.items() if example_id == example.id}
        labelled = {value: trial for value, trial in labelled.items() if trial.rewards}
        candidates: dict[str, Candidate] = {}
        order = sorted(labelled, key=lambda value: (value != current, derive_seed("candidate", example.id, value)))
        for value in order:
            source = "current" if value == current else f"value:{value}"
            [outputs] = labelled[value].answers
            candidates.setdefault(digest(outputs), Candidate(outputs, source, labelled[value].rewards))
        if len(candidates) > 1:
            chosen = tuple(candidates.values())[:most]
            groups.append(Group(name, example.id, calls[0].inputs, chosen, state.configuration.digest))
    return groups


def groups_of_runs(configuration: Configuration, runs: Runs) -> list[Group]:
    """Calls of all components in runs of the system, as groups of one candidate, which may become demonstrations."""
    return [
        Group(
            call.component,
            example.id,
            call.inputs,
            (Candidate(call.outputs, "current", (trace.reward,)),),
            configuration.digest,
            call.occurrence,
        )
        for example, trace in runs
        for call in trace.calls
    ]


def examples_seen(state: State, name: str) -> set[tuple[str, str]]:
    """(id of the example, digest of the answer) that a local reward may have been trained on."""
    return {
        (group.example_id, digest(candidate.outputs))
        for group in state.evidence
        if group.component == name and len(group.candidates) > 1  # nothing is learned from a single candidate
        for candidate in group.candidates
    }
