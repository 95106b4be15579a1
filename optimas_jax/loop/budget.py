"""Costs of a run so far, expected costs of its next step, and its hard limits.

``config.budget`` limits the whole run; ``config.optimize.max_tokens`` limits collecting and optimising together.
Nothing overruns them (``Ledger.limit``). Everything counts, whether it was paid now or came from the tape.

    config.budget    |## collect ##|## optimize: search ... |== held: confirmation, final test ==|
                                    |-- what the search may use --|

Baseline, confirmation and final test are priced before the first request (``price``), at their worst case. After a few
runs, and again after the baseline, the cost of a run is known, and the cost of the remaining measurements is set aside.
A search is a sequence of named *blocks* (a gate, a race), each of which counts as a whole or not at all:

    with run_limit(host, "optimize"):                             what earlier stages left of config.budget
        with search_limit(host):                                  and of max_tokens
            try:
                with block(host, "3/gate-0"):                     at most what is left
                    require(host, expected_cost(host, name, runs, calls))     start only what is expected to fit
                    ...
            except OutOfBudget: ...                               the block counts for nothing; its costs are used

A repetition of the command does the same. The tape then answers at the true cost, where the first time a request was
admitted at its worst case, so that more would fit. Therefore a block that was cut is recorded with its costs
(``budget_cuts.json``); the next command counts these costs, and cuts the block before its first request.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from optimas_jax.core.component import ComponentBug
from optimas_jax.core.folder.events import Curve
from optimas_jax.core.folder.files import read_rows
from optimas_jax.core.running.execution import Job, gather
from optimas_jax.core.scoring import MetricError
from optimas_jax.core.types import Call, Example, Outcome, StopRun, freeze
from optimas_jax.core.usage import Allowance, Limit, OutOfBudget, Usage
from optimas_jax.llm.base import Completion, CompletionRequest, Effect
from optimas_jax.llm.sandbox import Execution, ExecutionRequest
from optimas_jax.loop.config import RunConfig
from optimas_jax.loop.context import Host, Price
from optimas_jax.sandbox.unittests import Verdict

USED = "used.json"  # what each stage used, in the run folder
CUTS = "budget_cuts.json"  # blocks that a limit cut, in the run folder
PRICE = "price.json"  # price of the run's measurements, in the run folder
_STAGES = ("collect", "optimize", "evaluate")  # stages with costs
_PHASE = "optimize"  # phase of the ledger
_WORD = " a"  # one token in most vocabularies
_PLACEHOLDER = 64 * _WORD
FIRST_RUNS = 4  # runs on training inputs, from which the cost of a run is known
_NOTHING = Usage()
_MARGIN = 1.1  # answers in the final test may be longer than in the validation


def price(host: Host, config: RunConfig) -> Price:
    """The price of a run's measurements. The folder keeps it: a later command may lack the local models, whose
    tokenizers give the exact length of prompts.

    The components run on every example with a completer that sends no request: it adds up the worst case of each, and
    answers with a text of the greatest length. Where a component fails on such an answer, the components after it read
    a placeholder. The calls of a program are known only from running it: there, the mean of its first runs counts. The
    price is a plan; the ledger keeps the limit in any case. Other settings of the evaluation, which a folder allows,
    leave the price, and therefore the search, as they were.
    """
    settings, splits = config.evaluate, host.splits
    saved = host.folder.read(PRICE)
    if saved is not None and saved["prices"] == config.prices:
        return Price.from_json(saved)
    val, confirm = splits["val"][: config.optimize.gate_examples or None], splits.get("confirm", ())
    pricing = _dry_runs if host.system.program is None else _measured
    baseline, confirmed, tested = (pricing(host, examples) for examples in (val, confirm, splits[settings.split]))
    result = Price(
        baseline_runs=len(val),
        confirm_runs=len(confirm),
        test_runs=settings.repeats * len(splits[settings.split]),
        first=baseline.total.times(FIRST_RUNS / len(val)),
        baseline=baseline.total,
        final=(confirmed.total + tested.total.times(settings.repeats)).times(2),
        largest=baseline.largest.most(confirmed.largest).most(tested.largest),
    )
    host.folder.write(PRICE, {"prices": config.prices, **result.to_json()})
    return result


class _Pricing:
    """A completer that sends nothing: answers requests with placeholders, and adds up their worst-case costs."""

    def __init__(self, most: Callable[[Effect[Any]], Usage]):
        self.total, self.largest, self._most = Usage(), Usage(), most

    async def complete(self, request: CompletionRequest) -> Completion:
        self._add(request)
        return Completion(_WORD * request.max_tokens, Outcome.OK, 0, 0)

    async def execute(self, request: ExecutionRequest) -> Execution:
        self._add(request)
        return Execution(Verdict("failed", (), {}))

    def _add(self, effect: Effect[Any]) -> None:
        usage = self._most(effect)
        self.total, self.largest = self.total + usage, self.largest.most(usage)


def _dry_runs(host: Host, examples: Sequence[Example]) -> _Pricing:
    """Requests of all components, and of the metric, under the default configuration."""
    pricing, default = _Pricing(host.completer.most), host.system.default_configuration()
    system = dataclasses.replace(host.system.using(pricing), meter=None)

    async def run(example: Example) -> None:
        """Runs all components on an example, one after the other, and the metric."""
        fields = dict(example.inputs)
        for name in system.order:
            component, outputs = system.by_name[name], {}
            inputs = {field: fields.get(field, _PLACEHOLDER) for field in component.inputs}
            with contextlib.suppress(ComponentBug):
                call = Call(name, freeze(inputs), {})
                outputs = (await system.run_component(call, default.get(name), example, host.seed)).outputs
            fields |= {field: outputs.get(field, _PLACEHOLDER) for field in component.outputs}
        try:
            await system.score({field: fields[field] for field in system.output_fields}, example, host.seed)
        except (ComponentBug, MetricError):  # on a placeholder answer
            return
        except StopRun:
            raise
        except Exception:  # a metric may raise anything on it
            return

    gather([functools.partial(run, example) for example in examples], concurrency=len(examples) or 1)
    return pricing


def _measured(host: Host, examples: Sequence[Example]) -> _Pricing:
    """Costs of a program on ``examples``, from the mean cost of its first runs. The validation of the default makes
    these runs anyway."""
    first, default = host.splits["val"][:FIRST_RUNS], host.system.default_configuration()
    with host.ledger.phase("observe"), host.ledger.limit() as allowance:
        host.run("runs that tell the price", [Job(default, example, host.seed) for example in first])
    usage = sum(costs_by_role(allowance).values(), Usage()).times(_MARGIN / len(first))
    pricing = _Pricing(host.completer.most)
    pricing.total, pricing.largest = usage.times(len(examples)), usage
    return pricing


@contextlib.contextmanager
def run_limit(host: Host, stage: str, *, is_part: bool = True) -> Iterator[Allowance]:
    """Limits a stage to the rest of ``config.budget`` after the stages before it. At its end its costs are recorded, if
    it ``is_part`` of the run: another evaluation is not."""
    with host.ledger.limit(host.ledger.budget.rest(_used_before(host, stage))) as allowance:
        yield allowance
        used = host.folder.read(USED) or {}
        if is_part:
            host.folder.write(USED, {**used, stage: stage_usage(host).to_json()})


@contextlib.contextmanager
def search_limit(host: Host, stage: str = _PHASE) -> Iterator[Allowance]:
    """Limits collecting and optimising together to ``config.optimize.max_tokens``, inside ``run_limit``."""
    limit = Limit(tokens=host.max_tokens or math.inf)
    with host.ledger.limit(limit.rest(_used_before(host, stage))) as allowance:
        yield allowance


@contextlib.contextmanager
def block(host: Host, name: str) -> Iterator[Allowance]:
    """A part of a stage that counts as a whole or not at all.

    Args:
      name: unique in the run, and the same in every repetition of it.

    Raises:
      OutOfBudget: if a limit cuts it, now or in an earlier command, which recorded the cut. The caller must drop
        state that was changed inside.
    """
    key = f"{host.max_tokens} of {host.ledger.budget}:{name}"
    cuts = host.folder.read(CUTS) or {}
    if key in cuts:
        _replay_cut(host, cuts[key])
        raise OutOfBudget(f"{name} was cut by the same limit before")
    before = _meter_usage(host)
    with host.ledger.limit() as allowance:
        try:
            yield allowance
        except OutOfBudget:
            executed = _meter_usage(host) - before
            requests = [[role, request, *dataclasses.astuple(usage)] for role, request, usage in allowance.requests]
            host.folder.write(CUTS, {**cuts, key: {"executed": executed.to_json(), "requests": requests}})
            raise


def _replay_cut(host: Host, cut: dict[str, Any]) -> None:
    """Counts the costs of a block that an earlier command cut."""
    host.ledger.replay([(role, request, Usage(*usage)) for role, request, *usage in cut["requests"]])
    if host.system.meter is not None:
        executed = Usage.from_json(cut["executed"])
        host.system.meter.runs += executed.system_runs
        host.system.meter.executions += executed.component_calls


def stage_usage(host: Host) -> Usage:
    """Costs of the running stage, inside its ``run_limit``."""
    return host.ledger.used + _meter_usage(host)


def cost_so_far(host: Host) -> Usage:
    """Costs of collecting, over all commands, and of the running search."""
    return _used_before(host, _PHASE) + stage_usage(host)


def _used_before(host: Host, stage: str) -> Usage:
    """Costs of the stages before ``stage``, over all commands; of every stage if ``stage`` is not one of them."""
    used = host.folder.read(USED) or {}
    names = _STAGES[: _STAGES.index(stage)] if stage in _STAGES else _STAGES
    return sum((Usage.from_json(used[name]) for name in names if name in used), Usage())


def _meter_usage(host: Host) -> Usage:
    meter = host.system.meter
    return Usage(system_runs=meter.runs, component_calls=meter.executions) if meter else Usage()


def costs_from(host: Host, means: Mapping[str, float] | None = None) -> dict[str, float]:
    """Mean tokens of a run of the system from each component on: the component, all its descendants and the metric.

    Args:
      means: tokens of a request, by role; by default the means of the search so far.
    """
    means = _mean_tokens(host) if means is None else means
    return {
        name: sum(means.get(role, 0.0) for role in (name, *sorted(host.system.descendants(name)), "metric"))
        for name in host.components
    }


def expected_cost(host: Host, name: str, *, runs: int, calls: int = 0) -> Usage:
    """Expected costs of a step, from the mean request in this search so far; none before its first run.

    Args:
      name: name of a component; "" for whole runs of the system.
      runs: runs of the components that depend on it, the metric included.
      calls: calls of the component itself.
    """
    names = sorted(host.system.descendants(name)) if name else host.system.order
    requests = dict.fromkeys((*names, "metric"), runs) | ({name: calls} if name else {})
    usage = host.ledger.usage(_PHASE)
    return total(usage[role].times(n / usage[role].calls) for role, n in requests.items() if role in usage)


def fits(host: Host, expected: Usage, later: Usage = _NOTHING) -> bool:
    """Whether expected costs fit all limits in force. ``later``: further costs, outside the search, which only
    ``config.budget`` limits."""
    return not host.ledger.left.exceeded(expected) and not host.ledger.left_of_run.exceeded(expected + later)


def require(host: Host, expected: Usage) -> None:
    """Raises ``OutOfBudget`` if a step is not expected to fit, so that nothing is spent on a step that would be cut."""
    if not fits(host, expected):
        raise OutOfBudget(f"{host.ledger.left} are left, and the next step is expected to use {expected}")


def total(usages: Iterable[Usage]) -> Usage:
    """The sum of usages."""
    return sum(usages, Usage())


def costs_by_role(allowance: Allowance) -> dict[str, Usage]:
    """Costs of all different requests answered under an allowance, by the role that sent them."""
    costs: dict[str, Usage] = {}
    for role, usage in {(role, key): (role, usage) for role, key, usage in allowance.requests}.values():
        costs[role] = costs.get(role, Usage()) + usage
    return costs


def hold_final(host: Host, costs: Sequence[Mapping[str, Usage]], runs: int, final_runs: int) -> None:
    """Sets aside the expected cost of measuring the first and the last configuration. Requests that both have in common
    cost once.

    Args:
      costs: costs of ``runs`` validation runs, by role, under each configuration of the search (``State.costs``).
      final_runs: runs of each of the two configurations.

    Raises:
      OutOfBudget: if less than that is left.
    """
    if host.ledger.budget.is_set:
        first, last = costs[0], costs[-1]
        changed = [usage for role, usage in last.items() if usage != first.get(role)]
        expected = total([*first.values(), *changed]).times(_MARGIN * final_runs / runs)
        host.ledger.hold(expected + host.price.largest)


def _mean_tokens(host: Host) -> dict[str, float]:
    """Mean tokens per request, by role."""
    return {role: usage.tokens / usage.calls for role, usage in host.ledger.usage(_PHASE).items()}


def emit_curve(
    host: Host, at: Literal["start", "accept", "iteration", "end"], iteration: int, val_score: float
) -> None:
    """Writes a point of the curve of score against cost to the journal."""
    host.folder.emit(Curve(at=at, iteration=iteration, val_score=val_score, spent=cost_so_far(host)))


def read_curve(workdir: Path) -> list[dict[str, Any]]:
    """The points of the curve in a run's journal, in order."""
    return [event for event in read_rows(workdir / "journal.jsonl") if event["event"] == "curve"]
