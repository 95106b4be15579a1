"""``proposals.jsonl``: every value that an optimiser proposed, with its verdict and the reason.

The lines of an iteration are written at its end, in one step; a repetition has the same lines and writes none. Where a
higher budget allows a test that a lower one did not, the later line of an id is valid.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from optimas_jax.core.folder import events
from optimas_jax.core.stats import Comparison
from optimas_jax.core.types import digest
from optimas_jax.core.values import (
    Adapter,
    Choice,
    Hyperparameters,
    PerInstance,
    Prompt,
    Value,
    value_digest,
    value_to_json,
)
from optimas_jax.llm.render import render_fields
from optimas_jax.loop.journal import RunFolder
from optimas_jax.loop.state import Proposal, Ranked

PROPOSALS = "proposals.jsonl"
_WHY = {  # reasons of drops as sentences, for readers without the rest of the journal
    "in use": "it is the value in use",
    "refused before": "the gate has refused it under this configuration",
    "repeated": "another proposal of this iteration is the same, or it is the value in use",
    "same outputs": "on the training inputs it answers as the value in use, or as an earlier proposal",
    "empty": "the optimiser's answer is empty",
    "placeholder": "the optimiser's answer is a placeholder, not an instruction",
    "own proposer failed": "the own proposer raised an exception",
    "local reward not ahead": "the local reward is not shown to choose better than what needs no label",
}


class Drop(NamedTuple):
    """A rejected answer or value.

    Attributes:
      reason: short reason, a key of ``_WHY`` or a phrase.
      text: the answer of the model; "" for a rejected value.
      kind: the optimiser.
      value: the value, if the answer was read as one.
      detail: the full reason, where the short one leaves something out.
    """

    reason: str
    text: str = ""
    kind: str = ""
    value: Value | None = None
    detail: str = ""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The decision on a proposal.

    Attributes:
      verdict: ``accepted``; ``refused`` by the gate on all its examples; ``given up early`` by the gate; ``not tested``
        by the gate; ``not tried``: nothing was run.
      reason: a sentence.
      gate: figures of the test, if there was one.
    """

    verdict: Literal["accepted", "refused", "given up early", "not tested", "not tried"]
    reason: str
    gate: Mapping[str, Any] | None = None


def gate_verdict(
    comparison: Comparison, total: int, chance: float, *, passed: bool, exceeds: Sequence[str] = ()
) -> Verdict:
    """The verdict of the gate.

    Args:
      comparison: comparison on the examples so far.
      total: number of examples of the gate.
      chance: predictive probability of passing in the end, from the examples so far.
      exceeds: a sentence on each limit of a run's cost that the proposal exceeds.
    """
    figures = {**dataclasses.asdict(comparison), "gain": comparison.mean, "of": total}
    del figures["mean"]
    gain = f"gain {comparison.mean:+.3f} on {comparison.n} validation examples (p = {comparison.p_value:.3f})"
    if passed:
        return Verdict("accepted", gain, figures)
    if exceeds:
        return Verdict("refused", f"{'; '.join(exceeds)}; {gain}", figures)
    if comparison.n < total:
        early = f"given up after {comparison.n} of {total} examples: P = {chance:.2f} that it would pass"
        return Verdict("given up early", f"{early}; {gain}", figures)
    return Verdict("refused", f"not shown to be better: {gain}", figures)


def own_gate_verdict(
    comparison: Comparison, total: int, rule: str, reason: str, *, passed: bool, exceeds: Sequence[str] = ()
) -> Verdict:
    """The verdict of an own acceptance.

    Args:
      comparison: comparison on the examples so far.
      total: number of validation examples.
      rule: name of the acceptance.
      reason: reason that it returned, or "".
      exceeds: a sentence on each limit of the objective that the proposal exceeds, although the rule accepts it.
    """
    figures = {**dataclasses.asdict(comparison), "gain": comparison.mean, "of": total, "rule": rule, "covered": False}
    del figures["mean"]
    gain = f"gain {comparison.mean:+.3f} on {comparison.n} of {total} validation examples"
    why = f"{rule}{': ' * bool(reason)}{reason} ({gain}); the level of the gate does not cover it"
    why = "; ".join([why, *exceeds])
    early = comparison.n < total and not passed and not exceeds
    return Verdict("accepted" if passed else "given up early" if early else "refused", why, figures)


def not_tested(ranked: Sequence[Ranked], most: int) -> dict[str, Verdict]:
    """Verdicts of proposals after the race and before the gate, by their digests.

    Args:
      ranked: proposals, best first.
      most: number of proposals that the gate may test.
    """

    def reason(rank: int, candidate: Ranked) -> str:
        gain = f"expected gain {candidate.expected_gain:+.3f} on {candidate.inputs} training inputs"
        if rank and candidate.expected_gain <= 0:
            return f"no gain is expected: {gain}"
        return f"rank {rank + 1} of {len(ranked)} in the race, and the gate tests {most}: {gain}"

    return {
        candidate.proposal.digest: Verdict("not tested", reason(rank, candidate))
        for rank, candidate in enumerate(ranked)
    }


def unraced(proposals: Sequence[Proposal]) -> dict[str, Verdict]:
    """Verdicts of proposals that were not raced because the budget ended. Where a higher budget races them, the second
    line of each is valid."""
    verdict = Verdict("not tested", "the budget ended before its race did")
    return {proposal.digest: verdict for proposal in proposals}


def proposal_id(number: int, component: str, digest: str) -> str:
    """Names a value that was proposed in iteration ``number``, by the digest of the value."""
    return f"{number}-{component}-{digest[:8]}"


def write_proposals(
    folder: RunFolder,
    number: int,
    component: str,
    current: Value,
    proposals: Sequence[Proposal],
    ranked: Sequence[Ranked],
    verdicts: Mapping[str, Verdict],
    rejected: Sequence[Drop],
) -> None:
    """Appends the proposals of an iteration, in the order of proposing, and after them the rejected answers and values;
    writes the verdict of each to the journal.

    Args:
      number: number of the iteration, from 0.
      current: value of the component that they would replace.
      proposals: proposals of the race; those without a verdict are among ``rejected``.
      ranked: ranking of the race.
      verdicts: verdicts by digest of the proposal.
      rejected: rejected answers and values.
    """
    races = {candidate.proposal.digest: _race(rank, candidate) for rank, candidate in enumerate(ranked)}
    rows = [
        _row(
            proposal.kind,
            proposal.value,
            text_of(proposal.value),
            races.get(proposal.digest),
            verdicts[proposal.digest],
        )
        for proposal in proposals
        if proposal.digest in verdicts
    ]
    for drop in rejected:
        text = drop.text if drop.value is None else text_of(drop.value)
        why = drop.detail or _WHY.get(drop.reason, drop.reason)
        has_run = drop.reason == "same outputs"
        rows.append(_row(drop.kind, drop.value, text, None, Verdict("not tested" if has_run else "not tried", why)))
    head = {"iteration": number, "component": component, "parent": value_digest(current)}
    names: dict[str, int] = {}
    numbered = []
    for row in rows:
        name = proposal_id(number, component, row["digest"])
        names[name] = names.get(name, 0) + 1  # an optimiser may write the same text several times
        numbered.append({"id": name if names[name] == 1 else f"{name}-{names[name]}", **head, **row})
    folder.append_new(PROPOSALS, numbered)
    for row in numbered:
        fields = {name: row[name] for name in ("iteration", "component", "verdict", "reason", "id", "parent")}
        folder.emit(events.Verdict(kind=row["optimiser"], value=row["digest"], **fields))


def _row(kind: str, value: Value | None, text: str, race: Mapping[str, Any] | None, verdict: Verdict) -> dict[str, Any]:
    return {
        "optimiser": kind,
        "digest": digest(text) if value is None else value_digest(value),
        "text": text,
        "value": None if value is None else value_to_json(value),
        "race": race,
        "gate": verdict.gate,
        "verdict": verdict.verdict,
        "reason": verdict.reason,
    }


def _race(rank: int, ranked: Ranked) -> dict[str, Any]:
    fields = ("expected_gain", "labelled_gain", "local_gain", "inputs", "labelled")
    return {"rank": rank + 1, **{name: getattr(ranked, name) for name in fields}}


def text_of(value: Value) -> str:
    """A value as text for people: a prompt with its demonstrations, settings, the name of a model."""
    match value:
        case Prompt(instruction, demos):
            shown = [f"{_fields(demo.inputs)}\n{_fields(demo.outputs)}" for demo in demos]
            return "\n\n".join([instruction, *shown])
        case Hyperparameters(settings):
            return ", ".join(f"{name} = {setting}" for name, setting in settings.items())
        case Choice(name):
            return name
        case Adapter(name):
            return f"adapter {name}" if name else "base model"
        case PerInstance(values, _, samples):
            return f"for every input the best of {samples * len(values)} outputs of: " + "; ".join(map(text_of, values))


def _fields(fields: Mapping[str, Any]) -> str:
    return render_fields(fields, list(fields))
