"""Events of a search, in the order of an iteration; ``core.folder.events`` has all events, units and their lines.

Where a field has a default, journals of earlier versions do not have it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from optimas_jax.core.usage import Usage
from optimas_jax.core.values import Value

FLAT = {"flat": True}  # of a field whose entries are part of the journal's line itself
Interval = tuple[float, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pick:
    """The component of an iteration is chosen.

    Attributes:
      rule: ``order`` (the configuration names the first ones), ``uniform``, ``gap``, ``bandit``, or ``own:NAME``.
    """

    iteration: int
    component: str
    rule: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Update:
    """One update of a component's weights.

    Attributes:
      number: of the update, from 0.
      adapter: name of the new weights.
      metrics: by name, of the algorithm.
    """

    component: str
    number: int
    adapter: str
    metrics: Mapping[str, float] = dataclasses.field(metadata=FLAT)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Validation:
    """Weights were tried on inputs that are held back from updates.

    Attributes:
      number: updates so far.
      score: mean of the quantity that ``score_is`` names.
    """

    component: str
    number: int
    score: float
    score_is: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuned:
    """Weights are tuned.

    Attributes:
      adapter: name of the best weights.
      score, before: mean score on held-back inputs, of the best and of the first weights.
      kl: of the policy from its reference, nats a token.
      updates, learned: number of updates, and of those that changed anything.
    """

    component: str
    adapter: str
    score: float
    before: float
    kl: float
    updates: int
    learned: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Label:
    """Proposals were tried on training inputs and followed to their rewards, for the race.

    Attributes:
      proposals: number of them.
      inputs: that are labelled.
      labelled: answers with a reward, including answers of the value in use.
    """

    iteration: int
    component: str
    proposals: int
    inputs: int
    labelled: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dropped:
    """An answer of a model was rejected as a proposal.

    Attributes:
      reason: why it was rejected.
      text: its first 200 characters.
      kind: the optimiser.
    """

    component: str
    reason: str
    text: str
    iteration: int = -1
    kind: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Proposed:
    """Proposing and the race are done.

    Attributes:
      usable: number of proposals that the race ranked.
      dropped: numbers of rejected answers and values, by reason.
    """

    component: str
    usable: int
    dropped: Mapping[str, int]
    iteration: int = -1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Proposal:
    """A proposal as the race ranked it, the best first.

    Attributes:
      kind: the optimiser; ``own:NAME`` for an own one.
      value: the proposed value.
      expected_gain: estimated gain of the score, over all training inputs.
      labelled_gain: mean difference of known rewards alone; None without any.
      local_gain: mean difference of local scores; None where none are used.
      inputs, labelled: training inputs that it was tried on, and those with a known reward.
      id, parent: id of the proposal, as in ``proposals.jsonl``; digest of the value in use.
    """

    component: str
    kind: str
    value: Value
    expected_gain: float
    labelled_gain: float | None
    local_gain: float | None
    inputs: int
    labelled: int
    iteration: int = -1
    id: str = ""
    parent: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Race:
    """The race of an iteration is over.

    Attributes:
      labelled_runs: answers that were followed to their reward.
      effective_runs: number of labelled runs that would be as informative without local scores.
      local_reward: whether local scores were used.
      weight: weight of local scores, by the labels.
    """

    component: str
    labelled_runs: int
    effective_runs: float
    local_reward: bool
    weight: float
    iteration: int = -1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gate:
    """A proposal was tested on validation examples.

    Attributes:
      value: digest of the proposal's value.
      kind: the optimiser.
      expected_gain, labelled_gain, local_gain: as the race saw them (``Proposal``).
      val_gain, ci95, p_value: mean paired difference of the score, its interval, one-sided sign-flip test.
      n, of: number of examples that it was tested on, and of the whole test.
      accepted: whether it takes the place of the value in use.
      before, after: mean scores on these examples of the value in use and of the proposal, minus weighted costs where
        the objective has some.
      exceeds: costs whose limit it exceeds, so that it is refused whatever its scores.
      rule: ``paired``, ``strict``, ``none``, or ``own:NAME``.
      covered: whether the level of the gate holds for this verdict; not for an own rule's.
      reason: a sentence.
      id, parent: as in ``Proposal``.
    """

    iteration: int
    component: str
    value: str
    kind: str
    expected_gain: float
    labelled_gain: float | None
    local_gain: float | None
    val_gain: float
    ci95: Interval
    p_value: float
    n: int
    accepted: bool
    of: int | None = None
    before: float | None = None
    after: float | None = None
    exceeds: tuple[str, ...] = ()
    rule: str = ""
    covered: bool = True
    reason: str = ""
    id: str = ""
    parent: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accept:
    """A proposal took the place of the value in use; ``best/`` has it.

    Attributes:
      kind: the optimiser.
      value: the new one.
      val_gain, ci95, p_value: as in ``Gate``.
      val_score: mean score of the new configuration on all validation examples.
      covered: as in ``Gate``.
      id, parent: as in ``Proposal``.
    """

    iteration: int
    component: str
    kind: str
    value: Value
    val_gain: float
    ci95: Interval
    p_value: float
    val_score: float
    covered: bool
    id: str
    parent: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """The verdict on a proposal or a rejected value; one event for each row of ``proposals.jsonl``, at the iteration's
    end.

    Attributes:
      kind: the optimiser.
      value: digest of the value, or of an answer that is no value.
      verdict: ``accepted``, ``refused``, ``given up early``, ``not tested`` or ``not tried``.
      reason: a sentence.
      id, parent: as in ``Proposal``.
    """

    iteration: int
    component: str
    kind: str
    value: str
    verdict: str
    reason: str
    id: str
    parent: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adaptation:
    """Local rewards were compared with fresh labels, and were trained further or kept.

    Attributes:
      fresh_groups, fresh_pairs: groups with labels of this iteration, and pairs in them with different rewards.
      pair_accuracy_before: share of these pairs that local rewards ordered rightly; None without any.
      trained: whether they were trained further.
      reward: name of the local reward from here on.
    """

    fresh_groups: int
    fresh_pairs: int
    pair_accuracy_before: float | None
    trained: bool
    reward: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """A point of score against cost.

    Attributes:
      at: ``start``, ``accept``, ``iteration`` (its end) or ``end`` (by the budget).
      val_score: validation score of the configuration in use.
      spent: costs of collecting and of the search so far, answers from the tape included.
    """

    at: Literal["start", "accept", "iteration", "end"]
    iteration: int
    val_score: float
    spent: Usage = dataclasses.field(metadata=FLAT)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutOfBudget:
    """The budget does not allow the search's next step.

    Attributes:
      spent: as in ``Curve``.
    """

    spent: Usage = dataclasses.field(metadata=FLAT)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchEnd:
    """The search is over.

    Attributes:
      iterations: that were begun.
      reason: why it ended.
      accepted: number of accepted proposals.
      val_score: validation score of the configuration in use.
    """

    iterations: int
    reason: str
    accepted: int
    val_score: float
