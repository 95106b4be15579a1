"""Gate: tests proposals by the global score on validation examples; only calls whose inputs change run again."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence

from optimas_jax.core.folder import events
from optimas_jax.core.running.execution import Job
from optimas_jax.core.stats import Comparison, compare
from optimas_jax.core.types import Trace
from optimas_jax.core.usage import OutOfBudget
from optimas_jax.core.values import Value, value_digest, value_to_json
from optimas_jax.loop.budget import block, costs_by_role, emit_curve, expected_cost, fits, hold_final
from optimas_jax.loop.config import OptimizeConfig
from optimas_jax.loop.context import Host
from optimas_jax.loop.folder.proposals import Verdict, gate_verdict, not_tested, own_gate_verdict, proposal_id
from optimas_jax.loop.hooks.accept import own_verdict
from optimas_jax.loop.journal import OPTIMIZED
from optimas_jax.loop.state import Ranked, State
from optimas_jax.search.gate import GateConfig, all_looks, chance_of_passing, decide, looks
from optimas_jax.search.hooks import own_name
from optimas_jax.search.optimisers.registry import OWN
from optimas_jax.search.pareto import Point, point_of, tell_exceeded


def gate(
    host: Host, config: OptimizeConfig, state: State, name: str, ranked: Sequence[Ranked], number: int
) -> tuple[State, dict[str, Verdict]]:
    """Tests the best proposals in turn until one passes.

    As in the paper, the best proposal is tested even without an expected gain; further ones only with one. A test that
    is not expected to fit the rest of the budget is not begun. A test that the budget cuts has no result, and neither
    has a test of a value under which confirmation and final test would no longer fit.

    Args:
      ranked: proposals, best first.
      number: number of the iteration, for the journal.

    Returns:
      The state, and the verdict on every proposal, by its digest.
    """
    if not ranked:
        host.progress.line("  nothing to test: no proposal answers differently from the value in use")
    verdicts = not_tested(ranked, config.gate_top)
    hopeful = [candidate for index, candidate in enumerate(ranked) if index == 0 or candidate.expected_gain > 0]
    hopeful = hopeful[: config.gate_top]
    for index, candidate in enumerate(hopeful):
        value, later = candidate.proposal.value, [following.proposal.digest for following in hopeful[index + 1 :]]
        untested = dict.fromkeys(
            [candidate.proposal.digest, *later], Verdict("not tested", "the budget allows no test of it")
        )
        final_runs = host.price.final_runs  # runs of an accepted configuration in confirmation and final test
        cost, measured = (expected_cost(host, name, runs=n, calls=n) for n in (len(state.val_traces), final_runs))
        if not fits(host, cost, measured):
            host.progress.line(f"  {candidate.proposal.kind}: what is left of the budget is too little for its test")
            return state, verdicts | untested
        try:
            with block(host, f"{number}/gate {value_digest(value)}") as allowance:
                tested = within_limits(host, state, name, value, test(host, config.gate, state, name, candidate))
                costs = (*state.costs, {**state.costs[-1], **costs_by_role(allowance)})
                if tested.passed:
                    hold_final(host, costs, len(tested.traces), final_runs)
        except OutOfBudget as reason:
            host.progress.line(f"  {candidate.proposal.kind}: its test was cut, {reason}")
            return state, verdicts | untested
        comparison, verdict = tested.comparison, _verdict(config.gate, tested, state.val_traces)
        _report(host, number, name, state, candidate, tested, verdict.reason)
        verdicts[candidate.proposal.digest] = verdict
        state = state.gated(name, comparison.mean if tested.passed else 0.0)
        if tested.passed and tested.point is not None:
            verdicts |= dict.fromkeys(later, Verdict("not tested", "another proposal of this iteration was accepted"))
            state = dataclasses.replace(state, costs=costs, front=(*state.front, tested.point))
            return accept(host, state, number, name, candidate, tested), verdicts
        too_dear = "; ".join(["", *tested.exceeds])
        why = f"refused: gain {comparison.mean:+.2f} on {comparison.n} other examples{too_dear}"
        state = state.refusing(name, value, why)
    return state, verdicts


@dataclasses.dataclass(frozen=True)
class Tested:
    """A test of a proposal.

    Attributes:
      passed: whether the proposal passes.
      comparison: comparison on the examples of the last look.
      traces: validation runs with its value, on all examples if it passes.
      rule: name of the deciding rule: the configuration's gate, or ``own:NAME``.
      reason: reason that an own rule returned.
      point: its configuration in the Pareto set, if its scores pass.
      exceeds: a sentence on each limit of the objective that it exceeds.
    """

    passed: bool
    comparison: Comparison
    traces: Sequence[Trace]
    rule: str
    reason: str = ""
    point: Point | None = None
    exceeds: tuple[str, ...] = ()

    @property
    def covered(self) -> bool:
        """Whether the level of the gate holds for it."""
        return not self.rule.startswith(OWN)


def test(host: Host, config: GateConfig, state: State, name: str, one: Ranked) -> Tested:
    """Runs the paired test of a proposal on validation examples, with interim looks (``search.gate``), or an own
    acceptance at its looks."""
    before, total, value = state.val_traces, len(state.val_traces), one.proposal.value
    own, reason = host.hooks.accept, ""
    after: list[Trace] = []
    for stop in looks(config, total) if own is None else all_looks(total):
        after += _validate(host, state, name, value, len(after), stop)
        scores = [trace.reward for trace in after], [trace.reward for trace in before[:stop]]
        if own is None:
            verdict = decide(config, [new - old for new, old in zip(*scores, strict=True)], total)
        else:
            verdict, reason = own_verdict(host, own, state, name, one, *scores)
        if verdict != "continue":
            break
    if verdict == "accept":
        after += _validate(host, state, name, value, len(after), total)
    rule = config.kind if own is None else own_name(own)
    return Tested(verdict == "accept", compare(*scores), after, rule, reason)


def within_limits(host: Host, state: State, name: str, value: Value, tested: Tested) -> Tested:
    """The test after a check of the objective's limits: a value whose scores pass gets the point of its configuration,
    and fails if that exceeds a limit."""
    if not tested.passed:
        return tested
    objective = host.system.objective
    point = point_of(
        tested.traces,
        state.configuration.replace(name, value).digest,
        objective,
        changes=len(state.accepted) + 1,
        component=name,
        seconds=not host.shared_engine,
    )
    exceeds = () if objective is None else tuple(tell_exceeded(point, objective))
    return dataclasses.replace(tested, passed=not exceeds, point=point, exceeds=exceeds)


def _verdict(config: GateConfig, tested: Tested, before: Sequence[Trace]) -> Verdict:
    comparison, passed, exceeds = tested.comparison, tested.passed, tested.exceeds
    if not tested.covered:
        rule, reason = tested.rule, tested.reason
        return own_gate_verdict(comparison, len(before), rule, reason, passed=passed, exceeds=exceeds)
    gains = [new.reward - old.reward for new, old in zip(tested.traces, before, strict=False)][: comparison.n]
    chance = chance_of_passing(config, gains, len(before))
    return gate_verdict(comparison, len(before), chance, passed=passed, exceeds=exceeds)


def _validate(host: Host, state: State, name: str, value: Value, start: int, stop: int) -> list[Trace]:
    """Runs the system with a value on validation examples ``start`` to ``stop``; outputs that do not depend on it are
    kept."""
    changed, examples = state.configuration.replace(name, value), host.splits["val"]
    jobs = [
        Job(changed, example, host.seed, host.system.kept(trace, name))
        for example, trace in zip(examples[start:stop], state.val_traces[start:stop], strict=True)
    ]
    return host.run("gate", jobs)


def accept(host: Host, state: State, number: int, name: str, ranked: Ranked, tested: Tested) -> State:
    """The state with a new configuration, saved as ``best/``. Refused values may be tried again under it; runs,
    instructions and weights of the old configuration are dropped."""
    parent, proposal, comparison, traces = (
        value_digest(state.configuration[name]),
        ranked.proposal,
        tested.comparison,
        tested.traces,
    )
    configuration = state.configuration.replace(name, proposal.value)
    val_score = statistics.fmean(trace.score for trace in traces)
    summary = {
        "iteration": number,
        "component": name,
        "kind": ranked.proposal.kind,
        "value": value_to_json(ranked.proposal.value),
        "expected_gain": ranked.expected_gain,
        "local_gain": ranked.local_gain,
        "val_gain": comparison.mean,
        "val_score": val_score,
        "p_value": comparison.p_value,
        **({} if tested.covered else {"rule": tested.rule, "covered": False}),
    }
    if host.system.objective is not None and host.system.objective.is_weighted:  # the gain is of score minus costs
        before = statistics.fmean(trace.score for trace in state.val_traces)
        summary["val_score_gain"] = val_score - before
    accepted = (*state.accepted, summary)
    if host.system.watch is not None:
        host.system.watch.configuration = configuration
    if host.folder.read(OPTIMIZED) is None:  # the result of a finished search stays until there is another one
        host.folder.save_best(configuration, {"val_score": val_score, "accepted": list(accepted)})
    state = dataclasses.replace(
        state,
        configuration=configuration,
        val_traces=tuple(traces),
        train_traces={},
        accepted=accepted,
        history={},
        refused=frozenset(),
        known={},
        weights={},
    )
    host.folder.emit(
        events.Accept(
            iteration=number,
            component=name,
            kind=proposal.kind,
            value=proposal.value,
            val_gain=comparison.mean,
            ci95=comparison.ci95,
            p_value=comparison.p_value,
            val_score=val_score,
            covered=tested.covered,
            id=proposal_id(number, name, proposal.digest),
            parent=parent,
        )
    )
    emit_curve(host, "accept", number, val_score)
    return state


def _report(host: Host, number: int, name: str, state: State, ranked: Ranked, tested: Tested, reason: str) -> None:
    proposal, comparison = ranked.proposal, tested.comparison
    host.folder.emit(
        events.Gate(
            iteration=number,
            component=name,
            value=proposal.digest,
            kind=proposal.kind,
            expected_gain=ranked.expected_gain,
            labelled_gain=ranked.labelled_gain,
            local_gain=ranked.local_gain,
            val_gain=comparison.mean,
            ci95=comparison.ci95,
            p_value=comparison.p_value,
            n=comparison.n,
            accepted=tested.passed,
            of=len(state.val_traces),
            before=statistics.fmean(trace.reward for trace in state.val_traces[: comparison.n]),
            after=statistics.fmean(trace.reward for trace in tested.traces[: comparison.n]),
            exceeds=tested.point.exceeds if tested.point is not None and tested.exceeds else (),
            rule=tested.rule,
            covered=tested.covered,
            reason=reason,
            id=proposal_id(number, name, proposal.digest),
            parent=value_digest(state.configuration[name]),
        )
    )
    verdict = "accepted" if tested.passed else "refused"
    by = "" if tested.covered else f", by {tested.rule}, which no level covers"
    host.progress.line(
        f"  {verdict}: {proposal.kind}, expected gain {ranked.expected_gain:+.3f}, validation gain "
        f"{comparison.mean:+.3f} (p = {comparison.p_value:.3f}, n = {comparison.n}){by}"
        + "".join(f"; {sentence}" for sentence in tested.exceeds)
    )
