"""Gate: tests proposals by the global score on validation examples; only calls whose inputs change run again."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence

from optimas_jax.core.execution import Job
from optimas_jax.core.stats import Comparison, compare
from optimas_jax.core.types import Trace
from optimas_jax.core.usage import OutOfBudget
from optimas_jax.core.values import Value, value_digest, value_to_json
from optimas_jax.loop.budget import block, costs_by_role, emit_curve, expected_cost, fits, hold_final
from optimas_jax.loop.config import OptimizeConfig
from optimas_jax.loop.context import Host
from optimas_jax.loop.folder.proposals import Verdict, gate_verdict, not_tested
from optimas_jax.loop.journal import OPTIMIZED
from optimas_jax.loop.state import Ranked, State
from optimas_jax.search.gate import GateConfig, chance_of_passing, decide, looks
from optimas_jax.search.pareto import Point, point_of, tell_exceeded


def gate(
    host: Host, config: OptimizeConfig, state: State, name: str, ranked: Sequence[Ranked], number: int
) -> tuple[State, dict[str, Verdict]]:
    """Tests the best proposals in turn until one passes.

    As in the paper, the best proposal is tested even without an expected gain; further ones only with one. A test that
    is not expected to fit the rest of the budget is not begun, and a test that the budget cuts has no result; nor has
    one of a value under which confirmation and final test would no longer fit.

    Args:
      ranked: proposals, best first.
      number: of the iteration, for the journal.

    Returns:
      The state, and what became of every proposal, by its digest.
    """
    if not ranked:
        host.progress.line("  nothing to test: no proposal answers differently from the value in use")
    verdicts = not_tested(ranked, config.gate_top)
    hopeful = [one for index, one in enumerate(ranked) if index == 0 or one.expected_gain > 0][: config.gate_top]
    for index, one in enumerate(hopeful):
        value, later = one.proposal.value, [other.proposal.digest for other in hopeful[index + 1 :]]
        untested = dict.fromkeys(
            [one.proposal.digest, *later], Verdict("not tested", "the budget allows no test of it")
        )
        final_runs = host.price.final_runs  # of a new configuration, which an accepted proposal needs in the end
        cost, measured = (expected_cost(host, name, runs=n, calls=n) for n in (len(state.val_traces), final_runs))
        if not fits(host, cost, measured):
            host.progress.line(f"  {one.proposal.kind}: what is left of the budget is too little for its test")
            return state, verdicts | untested
        try:
            with block(host, f"{number}/gate {value_digest(value)}") as allowance:
                passed, comparison, traces = test(host, config.gate, state, name, value)
                point, exceeds = _point(host, state, name, value, traces) if passed else (None, [])
                passed = passed and not exceeds
                costs = (*state.costs, {**state.costs[-1], **costs_by_role(allowance)})
                if passed:
                    hold_final(host, costs, len(traces), final_runs)
        except OutOfBudget as reason:
            host.progress.line(f"  {one.proposal.kind}: its test was cut, {reason}")
            return state, verdicts | untested
        _report(host, number, name, one, comparison, passed, point)
        verdicts[one.proposal.digest] = _verdict(
            config.gate, comparison, traces, state.val_traces, passed=passed, exceeds=exceeds
        )
        state = state.gated(name, comparison.mean if passed else 0.0)
        if passed and point is not None:
            verdicts |= dict.fromkeys(later, Verdict("not tested", "another proposal of this iteration was accepted"))
            state = dataclasses.replace(state, costs=costs, front=(*state.front, point))
            return accept(host, state, number, name, one, comparison, traces), verdicts
        too_dear = "; ".join(["", *exceeds])
        why = f"refused: gain {comparison.mean:+.2f} on {comparison.n} other examples{too_dear}"
        state = state.refusing(name, value, why)
    return state, verdicts


def test(host: Host, config: GateConfig, state: State, name: str, value: Value) -> tuple[bool, Comparison, list[Trace]]:
    """The paired test of a value on validation examples, with interim looks (``search.gate``).

    Returns:
      Whether the value passes; the comparison on the examples of the last look; the validation runs with the value, on
      all examples if it passes.
    """
    before, total = state.val_traces, len(state.val_traces)
    after: list[Trace] = []
    for stop in looks(config, total):
        after += _validate(host, state, name, value, len(after), stop)
        scores = [trace.reward for trace in after], [trace.reward for trace in before[:stop]]
        verdict = decide(config, [new - old for new, old in zip(*scores, strict=True)], total)
        if verdict != "continue":
            break
    if verdict == "accept":
        after += _validate(host, state, name, value, len(after), total)
    return verdict == "accept", compare(*scores), after


def _point(host: Host, state: State, name: str, value: Value, traces: Sequence[Trace]) -> tuple[Point, list[str]]:
    """The point of a configuration whose scores pass, and a sentence on each limit that it exceeds."""
    objective = host.system.objective
    point = point_of(
        traces,
        state.configuration.replace(name, value).digest,
        objective,
        changes=len(state.accepted) + 1,
        component=name,
        seconds=not host.shared_engine,
    )
    return point, [] if objective is None else tell_exceeded(point, objective)


def _verdict(
    config: GateConfig,
    comparison: Comparison,
    after: Sequence[Trace],
    before: Sequence[Trace],
    *,
    passed: bool,
    exceeds: Sequence[str],
) -> Verdict:
    seen = [new.reward - old.reward for new, old in zip(after, before, strict=False)][: comparison.n]
    chance = chance_of_passing(config, seen, len(before))
    return gate_verdict(comparison, len(before), chance, passed=passed, exceeds=exceeds)


def _validate(host: Host, state: State, name: str, value: Value, start: int, stop: int) -> list[Trace]:
    """Runs on validation examples ``start`` to ``stop`` with a value; outputs that do not depend on it are kept."""
    changed, examples = state.configuration.replace(name, value), host.splits["val"]
    jobs = [
        Job(changed, example, host.seed, host.system.kept(trace, name))
        for example, trace in zip(examples[start:stop], state.val_traces[start:stop], strict=True)
    ]
    return host.run("gate", jobs)


def accept(
    host: Host, state: State, number: int, name: str, ranked: Ranked, comparison: Comparison, traces: Sequence[Trace]
) -> State:
    """The state with a new configuration, saved as ``best/``. Refused values may be tried again under it; runs,
    instructions and weights of the old configuration are dropped."""
    configuration = state.configuration.replace(name, ranked.proposal.value)
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
    }
    if host.system.objective is not None and host.system.objective.is_weighted:  # gains are of the score minus costs
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
    emit_curve(host, "accept", number, val_score)
    return state


def _report(
    host: Host, number: int, name: str, ranked: Ranked, comparison: Comparison, passed: bool, point: Point | None
) -> None:
    proposal, objective = ranked.proposal, host.system.objective
    exceeds = [] if point is None or objective is None else tell_exceeded(point, objective)
    host.folder.emit(
        "gate",
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
        accepted=passed,
        **({"exceeds": list(point.exceeds)} if point is not None and exceeds else {}),
    )
    verdict = "[green]accepted[/green]" if passed else "refused"
    host.progress.line(
        f"  {verdict}: {proposal.kind}, expected gain {ranked.expected_gain:+.3f}, validation gain "
        f"{comparison.mean:+.3f} (p = {comparison.p_value:.3f}, n = {comparison.n})"
        + "".join(f"; {sentence}" for sentence in exceeds)
    )
