"""The plan of a run: expected costs of its host loop, step by step, before anything is spent."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optimas_jax.benchmarks.modules import find_benchmark, title
from optimas_jax.core.progress import Progress
from optimas_jax.core.types import StopRun
from optimas_jax.core.usage import Limit, Usage
from optimas_jax.llm.providers import models_named
from optimas_jax.loop.budget import total
from optimas_jax.loop.config import PROBE, STAGES, RunConfig, key_of
from optimas_jax.loop.forecast.device import DevicePlan, plan_on
from optimas_jax.loop.forecast.imagined import World
from optimas_jax.loop.forecast.lengths import FirstRequests, measure_lengths
from optimas_jax.loop.forecast.rates import counter_of, speeds_of, timed_models
from optimas_jax.loop.forecast.rehearse import ImaginedModel, Quiet, Rehearsal, rehearse
from optimas_jax.loop.forecast.rows import rows_and_system
from optimas_jax.loop.forecast.spent import in_order
from optimas_jax.loop.hooks.settings import hooks_of, with_hooks
from optimas_jax.loop.iteration import ITERATION
from optimas_jax.loop.journal import PLAN, RESULTS, write_json
from optimas_jax.loop.objective import check_measurable, check_objective
from optimas_jax.loop.setup.completers import answering, check_completers, own_prices, without_price
from optimas_jax.traces.read import read_traces

# Expected: as configs/hotpotqa.py and its ``:tiny`` behave. Low: answers hardly differ, and nothing is accepted.
# High: every answer differs, every iteration accepts a proposal, and no gain is confirmed.
LOW = World(changes=0.3, redrawn=0.3, differs=1.0, before=1.0, after=0.0, usable=0.3, length=0.2, speed=0.5)
EXPECTED = World(changes=0.4, redrawn=0.95, differs=0.45, before=0.2, after=0.8, usable=0.7, length=0.6)
HIGH = World(changes=1.0, redrawn=1.0, differs=0.2, before=0.5, after=0.5, accepts=True, length=1.0, speed=2.0)
_TIMES, _LARGE = 9, 10_000  # rehearsals of a usual run; calls above which one is enough
_MOST, _FEW = 8, 4  # most iterations rehearsed in full, and number of rehearsed iterations of a longer search
_PROGRAM = "a program is not run for its plan, which assumes one call of every component in a run"

_HOOKS = "own functions are not run for a plan, which assumes optimize.instructions requests of each own proposer"


@dataclasses.dataclass(frozen=True)
class Range:
    """Costs of a step.

    Attributes:
      low, expected, high: costs of a run that hardly changes anything, of a usual one, and of one that changes as much
        as possible.
    """

    low: Usage
    expected: Usage
    high: Usage

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name).to_json() for name in ("low", "expected", "high")}


@dataclasses.dataclass(frozen=True)
class HostForecast:
    """Expected costs of the host loop: requests of components, proposers and judges. Training and scoring of local
    rewards run on the devices, and are not included.

    Attributes:
      steps: costs by step, in the order of a run: ``PHASE: PART``, or the phase alone (``bill``). Seconds count
        only while requests are in flight.
      calls: expected calls by step and role.
      limit: ``config.budget``.
      cut: number of the iteration in which the budget is expected to end the search; None if it is not.
      unknown: sentences on figures that are unknown or only estimated.
    """

    steps: Mapping[str, Range]
    calls: Mapping[str, Mapping[str, int]]
    limit: Limit
    cut: int | None
    unknown: tuple[str, ...]

    @property
    def total(self) -> Range:
        """Costs of all steps, within the limit."""
        low, expected, high = (
            total(getattr(costs, name) for costs in self.steps.values()) for name in ("low", "expected", "high")
        )
        most = {
            name: min(getattr(high, name), limit)
            for name, limit in (("usd", self.limit.usd), ("calls", self.limit.calls))
        }
        if high.tokens > self.limit.tokens:
            share = self.limit.tokens / high.tokens
            most["prompt_tokens"] = math.ceil(high.prompt_tokens * share)
            most["completion_tokens"] = math.floor(high.completion_tokens * share)
        return Range(low, expected, dataclasses.replace(high, **most))

    def to_json(self) -> dict[str, Any]:
        return {
            "steps": {step: costs.to_json() for step, costs in self.steps.items()},
            "total": self.total.to_json(),
            "calls": {step: dict(roles) for step, roles in self.calls.items()},
            "limit": str(self.limit) if self.limit.is_set else "",
            "cut": self.cut,
            "unknown": list(self.unknown),
        }


@dataclasses.dataclass(frozen=True, repr=False)
class Plan:
    """The plan of a run.

    Attributes:
      title: title of the run.
      config: digest of its settings.
      host: forecast of the host loop.
      device: plan of the local models on the devices; None where no devices were named.
    """

    title: str
    config: str
    host: HostForecast
    device: DevicePlan | None = None

    def to_json(self) -> dict[str, Any]:
        device = None if self.device is None else self.device.to_json()
        return {"title": self.title, "config": self.config, "host": self.host.to_json(), "device": device}

    def check(self) -> None:
        """Raises ``StopRun`` if the local models do not fit the devices, with settings that do."""
        if self.device is not None and not self.device.fits:
            raise StopRun(
                f"{self.title} does not fit {self.device.count} x {self.device.kind.name}: {self.device.way_out}"
            )

    def save(self, workdir: Path) -> bool:
        """Writes the plan into the folder of its run, whose results then show it beside the costs. A run with results
        keeps its plan; returns whether the plan was written."""
        if (workdir / RESULTS).is_file():
            return False
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(workdir / PLAN, self.to_json())
        return True

    def __repr__(self) -> str:
        costs = self.host.total
        return (
            f"Plan({self.title}: {costs.expected.calls:,} calls ({costs.low.calls:,} to {costs.high.calls:,}), "
            f"{costs.expected.tokens:,} tokens, {costs.expected.usd:.4f} US dollars, {costs.expected.seconds:,.0f} s)"
        )


def plan_run(
    config: RunConfig,
    stage: str = "all",
    benchmark: Any = None,
    devices: str = "",
    progress: Progress | None = None,
) -> Plan:
    """Plans a run, or the probe before it. Needs no key, no download and no model. Local models are timed; those that
    are on this machine are asked for a few answers.

    Args:
      stage: ``probe``, or any other for the whole run.
      benchmark: replaces the one that the configuration names.
      devices: name of the devices for which local models are planned (``parallel.devices.devices_named``); "" for none.
      progress: gets a line before each part that takes seconds; None shows nothing.

    Raises:
      ValueError, StopRun: as the run itself before it spends anything, except for missing keys.
    """
    benchmark = benchmark or find_benchmark(config.benchmark)
    hooks = hooks_of(benchmark)
    config = with_hooks(config, hooks)
    check_completers(config, Path(), keys=False)
    data, system, notes = rows_and_system(benchmark, config)
    if config.traces:
        read_traces(config.traces)
        notes = (*notes, "recorded calls (traces) spare a part of collecting, which is planned without them")
    choices = models_named(system)
    device = plan_on(config, devices, choices) if devices else None
    check_completers(config, Path(), choices, keys=False)
    check_objective(config, system)
    check_measurable(config, system)
    models = tuple(dict.fromkeys(answering(config, choices)))
    count, estimated = counter_of(models)
    progress = progress or Quiet()
    if timed := timed_models(models):
        progress.line(f"timing {', '.join(timed)} on this machine")
    speeds, unsure = speeds_of(models)
    progress.line("rehearsing the run")
    short = dataclasses.replace(_shortened(config), traces="")

    def rehearsed(world: World, number: int = 0, first: FirstRequests | None = None) -> Rehearsal:
        model = ImaginedModel(world, count, speeds, own_prices(config), first or FirstRequests())
        other = dataclasses.replace(short, seed=config.seed + number)
        stages = (PROBE,) if stage == PROBE else STAGES
        return _at_length(rehearse(other, system, data, stages, world, model, hooks), config)

    low = rehearsed(LOW, first=(first := FirstRequests()))
    lengths, assumed = measure_lengths(first, timed, count, speeds, progress)
    usual = dataclasses.replace(EXPECTED, lengths=lengths)
    expected = [rehearsed(usual)]
    if _calls(expected[0]) <= _LARGE:
        expected += [rehearsed(usual, number) for number in range(1, _TIMES)]
    rehearsals = [low, _mean(expected), rehearsed(HIGH)]
    unmetered = [name for name, component in system.by_name.items() if not component.metered]
    unknown = [*notes, *([_PROGRAM] if system.program is not None else []), *([_HOOKS] if hooks.titles else [])]
    unknown += [f"no price of {spec} is known: its dollars are not counted" for spec in without_price(config, choices)]
    unknown += [f"tokens of {spec} are estimated from characters" for spec in estimated]
    unknown += [
        f"{name} may ask a model by a client of its own: its tokens and dollars are unknown" for name in unmetered
    ]
    host = _forecast(rehearsals, config, (*unknown, *unsure, *assumed))
    return Plan(f"{title(config.benchmark)}:{config.variant}", key_of(config), host, device)


def _mean(rehearsals: Sequence[Rehearsal]) -> Rehearsal:
    """A rehearsal with the mean costs of several: which component is improved, and whether a gain is confirmed, are
    drawn anew in each. The rest is as in the one with the median number of calls."""
    usual = sorted(rehearsals, key=_calls)[len(rehearsals) // 2]
    used: dict[str, dict[str, Usage]] = {}
    for rehearsal in rehearsals:
        for step, roles in rehearsal.used.items():
            for role, usage in roles.items():
                used.setdefault(step, {})[role] = used.get(step, {}).get(role, Usage()) + usage
    share = 1.0 / len(rehearsals)
    means = {step: {role: usage.times(share) for role, usage in roles.items()} for step, roles in used.items()}
    return dataclasses.replace(usual, used=means)


def _calls(rehearsal: Rehearsal) -> int:
    return sum(total(roles.values()).calls for roles in rehearsal.used.values())


def _shortened(config: RunConfig) -> RunConfig:
    """The configuration with few iterations, from which the costs of more follow (``_at_length``). With a limit it is
    unchanged, because that may end the search in any iteration."""
    if config.budget.limit.is_set or config.optimize.max_tokens:
        return config
    few = _FEW if config.optimize.iterations > _MOST else config.optimize.iterations
    return dataclasses.replace(config, optimize=dataclasses.replace(config.optimize, iterations=few))


def _at_length(rehearsal: Rehearsal, config: RunConfig) -> Rehearsal:
    """The rehearsal of a shortened run, scaled to all iterations: later ones cost and accept as much as the first."""
    if config.optimize.iterations <= _MOST or rehearsal.iterations != _FEW or rehearsal.cut is not None:
        return rehearsal  # the rehearsal has all iterations, no value is left to try, or the budget ended it
    more = config.optimize.iterations / rehearsal.iterations
    states = (1 + (rehearsal.states - 1) * more) / rehearsal.states
    factors = dict.fromkeys((f"optimize: {part}" for part in ITERATION), more)
    if config.evaluate.changes:
        factors["evaluate"] = states
    if not rehearsal.confirmed:
        factors["confirm"] = states
    used = {
        step: {role: usage.times(factors.get(step, 1.0)) for role, usage in roles.items()}
        for step, roles in rehearsal.used.items()
    }
    return dataclasses.replace(rehearsal, used=used)


def _forecast(rehearsals: Sequence[Rehearsal], config: RunConfig, unknown: tuple[str, ...]) -> HostForecast:
    """The forecast from rehearsals in the worlds ``LOW``, ``EXPECTED`` and ``HIGH``."""
    _, expected, _ = rehearsals
    order = in_order(step for rehearsal in rehearsals for step in rehearsal.used)
    steps: dict[str, Range] = {}
    for step in order:
        low, usual, high = (total(rehearsal.used.get(step, {}).values()) for rehearsal in rehearsals)
        steps[step] = Range(low.least(usual), usual, usual.most(high))
    calls = {
        step: {role: usage.calls for role, usage in expected.used[step].items()}
        for step in order
        if step in expected.used
    }
    return HostForecast(steps, calls, config.budget.limit, expected.cut, unknown)
