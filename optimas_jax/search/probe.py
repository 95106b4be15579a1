"""The probe: measures whether a search can gain anything, and where, before the search is paid for.

Every component gets a few random values. They are *screened* on few inputs; the best values of the two most promising
components are *tested* on fresh inputs, so that their selection does not bias the gains:

    random values -> screen (all components, few inputs) -> test (two finalists, fresh inputs) -> findings

This module only decides: a callback runs the system.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from optimas_jax.core.stats import sign_flip_test
from optimas_jax.core.usage import OutOfBudget

Floats = NDArray[np.float64]
Changes = Mapping[str, int]  # component -> index of its random value; others keep their current one
Measure = Callable[[Changes, Sequence[int], int], Floats]  # (changes, indices of inputs, repeat) -> their scores

FINALISTS = 2  # components that are tested
LEVEL = 0.05  # probability that the probe finds a gain where there is none
_WAVE = 4  # inputs of the test that are measured at a time
FEWEST = 6  # least number of inputs for a test
TELLING = 8  # least number of inputs from which a test without a gain is a reason to stop


@dataclasses.dataclass(frozen=True)
class Plan:
    """Size of a probe.

    Attributes:
      values: number of random values of each component.
      screen: number of inputs on which all values are tried.
      test: most further inputs on which the finalists are tested.
    """

    values: int
    screen: int
    test: int


@dataclasses.dataclass(frozen=True)
class Headroom:
    """Results of the probe for one component.

    Attributes:
      name: name of the component.
      value: index of its best value on the screening inputs; None if no value is better there than the current one.
      screened: mean gain of that value on the screening inputs, biased upwards by the selection; 0 without one.
      gain: mean gain of that value on the test inputs; None if it was not tested.
      ci95: t interval of ``gain``.
      p_value: one-sided p-value of the sign-flip test of ``gain``.
      inputs: number of test inputs.
      shown: whether a gain is shown at the level of the probe, all finalists together.
      ceiling: share of the pairs of outputs of an input that a second run of the system orders as the first run did: an
        estimate of the accuracy of a perfect local reward; None without pairs.
    """

    name: str
    value: int | None
    screened: float
    gain: float | None = None
    ci95: tuple[float, float] | None = None
    p_value: float | None = None
    inputs: int = 0
    shown: bool = False
    ceiling: float | None = None


@dataclasses.dataclass(frozen=True)
class Coupling:
    """Whether the gains of two components add up (two-way layout: with and without the best value of each).

    Attributes:
      components: names of the two components.
      interaction: mean of s11 - s10 - s01 + s00 over inputs: positive where they help each other.
      f: F of the interaction, inputs as blocks.
      p_value: p-value of ``f``.
    """

    components: tuple[str, str]
    interaction: float
    f: float
    p_value: float


@dataclasses.dataclass(frozen=True)
class Findings:
    """Result of a probe.

    Attributes:
      first: component to tune first; None where no gain is shown.
      components: headroom of each component, in the system's order.
      coupling: coupling of the two finalists, if both were tested.
      smallest: gain that the test would have shown with a power of 0.8, from the observed spread; None without a test,
        or where no score changed.
      advice: sentences for the user.
    """

    first: str | None
    components: tuple[Headroom, ...]
    coupling: Coupling | None
    smallest: float | None
    advice: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def probe(
    names: Sequence[str], upstream: Sequence[str], counts: Changes, measure: Measure, plan: Plan, more: str = ""
) -> Findings:
    """Screens all components and tests the finalists.

    Args:
      names: components, in the system's order.
      upstream: components that have descendants.
      counts: number of random values of each component.
      measure: returns scores of a configuration on inputs; inputs from ``plan.screen`` on are fresh for the test. If it
        raises ``OutOfBudget`` in the test, the test ends with the inputs so far.
      more: sentence on how to test more inputs, for the advice.

    Raises:
      OutOfBudget: ``measure`` raised it in the screening.
    """
    inputs = range(plan.screen)
    base = [measure({}, inputs, repeat) for repeat in (0, 1)]
    screened = [_screen(name, counts[name], base, measure, inputs) for name in names]
    ranked = sorted(
        (headroom for headroom in screened if headroom.value is not None), key=lambda headroom: -headroom.screened
    )
    finalists = ranked[:FINALISTS]
    tested, coupling, smallest = _test(finalists, measure, plan)
    components = tuple(tested.get(headroom.name, headroom) for headroom in screened)
    shown = [headroom for headroom in components if headroom.shown]
    first = max(shown, key=lambda headroom: headroom.gain or 0.0).name if shown else None
    findings = Findings(first, components, coupling, smallest, ())
    return dataclasses.replace(findings, advice=advice(findings, upstream, more))


def _screen(name: str, count: int, base: Sequence[Floats], measure: Measure, inputs: Sequence[int]) -> Headroom:
    """The best of a component's values on the screening inputs, by the mean of two runs."""
    runs = [np.array([measure({name: index}, inputs, repeat) for index in range(count)]) for repeat in (0, 1)]
    if not count:
        return Headroom(name, None, 0.0)
    gains = np.mean([scores - before for scores, before in zip(runs, base, strict=True)], axis=0)
    means = gains.mean(-1)
    ceiling = noise_ceiling(*(np.vstack([before, scores]) for scores, before in zip(runs, base, strict=True)))
    best = int(means.argmax())
    if means[best] <= 0:
        return Headroom(name, None, 0.0, ceiling=ceiling)
    return Headroom(name, best, float(means[best]), ceiling=ceiling)


def _test(
    finalists: Sequence[Headroom], measure: Measure, plan: Plan
) -> tuple[dict[str, Headroom], Coupling | None, float | None]:
    """Tests the finalists on fresh inputs as far as the budget allows.

    Returns:
      Headroom of the tested finalists by name, their coupling, and the largest detectable gain.
    """
    gains: dict[str, list[float]] = {headroom.name: [] for headroom in finalists}
    joint: list[float] = []
    best = {headroom.name: headroom.value for headroom in finalists if headroom.value is not None}
    try:
        for begin in range(plan.screen, plan.screen + plan.test, _WAVE):
            inputs = range(begin, min(begin + _WAVE, plan.screen + plan.test))
            base = measure({}, inputs, 0)
            wave = {name: measure({name: value}, inputs, 0) - base for name, value in best.items()}
            both = measure(best, inputs, 0) - base if len(best) == 2 else np.zeros(0)
            for name, row in wave.items():
                gains[name] += row.tolist()
            joint += both.tolist()
    except OutOfBudget:
        pass
    usable = {name: np.array(row) for name, row in gains.items() if len(row) >= FEWEST}
    level = LEVEL / max(1, len(usable))
    tested = {
        headroom.name: _tested(headroom, usable[headroom.name], level)
        for headroom in finalists
        if headroom.name in usable
    }
    smallest = max((_detectable(row, level) for row in usable.values()), default=0.0) or None
    coupling = None
    if len(usable) == 2:
        first, second = usable
        coupling = _coupling((first, second), np.array(joint), usable[first], usable[second])
    return tested, coupling, smallest


def _tested(headroom: Headroom, gains: Floats, level: float) -> Headroom:
    p_value = float(sign_flip_test(gains))
    mean, error = float(gains.mean()), float(gains.std(ddof=1)) / math.sqrt(len(gains))
    wide = float(special.stdtrit(len(gains) - 1, 0.975)) * error
    return dataclasses.replace(
        headroom,
        gain=mean,
        ci95=(mean - wide, mean + wide),
        p_value=p_value,
        inputs=len(gains),
        shown=p_value <= level,
    )


def _detectable(gains: Floats, level: float) -> float:
    """Gain that a one-sided t test at ``level`` on this number of inputs shows with a power of about 0.8."""
    dof = len(gains) - 1
    quantiles = special.stdtrit(dof, 1 - level) + special.stdtrit(dof, 0.8)
    return float(quantiles * gains.std(ddof=1) / math.sqrt(len(gains)))


def _coupling(names: tuple[str, str], both: Floats, first: Floats, second: Floats) -> Coupling:
    """The coupling of two components, from gains over the current configuration: with both values, and with each
    alone."""
    f, p_value = interaction_test(np.array([[np.zeros(len(both)), second], [first, both]]))
    return Coupling(names, float((both - first - second).mean()), f, p_value)


def interaction_test(scores: Floats) -> tuple[float, float]:
    """F test of the interaction in a two-way layout with inputs as blocks.

    The interaction of each input is the residual of its scores without row and column means. The mean of the residuals
    over inputs is compared with their spread between inputs, with (A - 1)(B - 1) and (A - 1)(B - 1)(N - 1) degrees of
    freedom.

    Args:
      scores: float64[A, B, N].

    Returns:
      F and its p-value; 0 and 1 where nothing varies.
    """
    rows, columns, inputs = scores.shape
    residuals = (
        scores - scores.mean(0, keepdims=True) - scores.mean(1, keepdims=True) + scores.mean((0, 1), keepdims=True)
    )
    mean = residuals.mean(-1, keepdims=True)
    dof = (rows - 1) * (columns - 1)
    between = float(inputs * (mean**2).sum()) / max(dof, 1)
    within = float(((residuals - mean) ** 2).sum()) / max(dof * (inputs - 1), 1)
    if between <= 1e-12 or inputs < 2:
        return 0.0, 1.0
    if within <= 1e-12:
        return math.inf, 0.0
    return between / within, float(stats.f.sf(between / within, dof, dof * (inputs - 1)))


def noise_ceiling(first: Floats, second: Floats) -> float | None:
    """Share of the pairs of values, input by input, that ``second`` orders as ``first`` does; equal scores count half.

    Args:
      first, second: float64[values, N], scores of two independent runs.
    """
    differs = first[:, None] > first[None]
    alike = np.sign(second[:, None] - second[None])[differs]
    return float((alike > 0).mean() + (alike == 0).mean() / 2) if alike.size else None


def advice(findings: Findings, upstream: Sequence[str], more: str = "") -> tuple[str, ...]:
    """Sentences of advice that follow from the findings. ``more``: sentence on how to test more inputs."""
    tested = [headroom for headroom in findings.components if headroom.gain is not None]
    if findings.first is None:
        inputs = min((headroom.inputs for headroom in tested), default=0)
        if inputs < TELLING and any(headroom.value is not None for headroom in findings.components):
            return (f"cannot tell: {inputs} inputs were left to test a gain on, and {TELLING} are needed. {more}",)
        if not tested:
            return ("stop here: no random value of any component gained anything on the screening inputs",)
        named = ", ".join(f"{headroom.name} {headroom.gain:+.2f} {_interval(headroom)}" for headroom in tested)
        if findings.smallest is None:
            return (f"stop here: no score of {inputs} fresh inputs changed ({named})",)
        return (
            f"stop here: expected gain below noise ({named}). A gain of {findings.smallest:.2f} would have been shown; "
            f"for a smaller one test on more than {inputs} inputs. {more}",
        )
    best = next(headroom for headroom in findings.components if headroom.name == findings.first)
    lines = [f"tune {best.name} first: a random value of it gains {best.gain:+.2f} {_interval(best)}"]
    others = [headroom for headroom in findings.components if headroom.name in upstream and headroom.name != best.name]
    if best.name not in upstream and others and not any(headroom.shown for headroom in others):
        lines.append(f"upstream components do not matter here, as far as {len(others)} of them with random values tell")
    coupling = findings.coupling
    if coupling is not None and coupling.p_value <= 0.05:
        word = "help" if coupling.interaction > 0 else "stand in for"
        lines.append(f"{' and '.join(coupling.components)} {word} each other (F = {coupling.f:.1f})")
    return tuple(lines)


def _interval(headroom: Headroom) -> str:
    low, high = headroom.ci95 or (math.nan, math.nan)
    return f"[{low:.2f}, {high:.2f}]"
