"""Metrics: the arguments that they get, and the scores that they may return.

The names of its arguments say what a metric gets: ``outputs`` of the system, ``gold`` fields of the example, the whole
``example`` (inputs and gold as one dict), the ``trace`` of the run, and for a judge, which asks a model, the
``context``. It returns a number, a number and a text, or a ``Score``.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import numbers
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from optimas_jax.core.text.frames import UserBug
from optimas_jax.core.types import Example, thaw, valid_text

ARGUMENTS = ("example", "outputs", "gold", "trace", "context")
_LARGEST_SCORE = 1e100  # absolute value: sums of scores stay finite
_NO_RETURN = ": a way through it has no return"
_LONGEST = 300  # characters of fields in a message


class MetricError(UserBug):
    """A metric whose arguments are unknown, or that returned no score."""


class NonFiniteScore(MetricError):
    """A metric returned NaN, an infinity, or a number too large to be averaged."""


@dataclasses.dataclass(frozen=True)
class Score:
    """Score of one run, as a metric returns it.

    Attributes:
      value: higher is better.
      feedback: the reason, as text; proposers read it.
      parts: scores of single aspects, for reports.

    Raises:
      MetricError: by the run, where ``value`` is no finite number.

    Example:
      ```python
      def judge(example, outputs):
          right, short = example["answer"] in outputs["answer"], len(outputs["answer"].split()) <= 3
          feedback = "" if short else "Use at most three words."
          return oj.Score(0.5 * right + 0.5 * short, feedback, {"right": right, "short": short})
      ```
    """

    value: float
    feedback: str = ""
    parts: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", MappingProxyType(dict(self.parts)))


@functools.cache
def metric_arguments(metric: Callable[..., Any]) -> tuple[str, ...]:
    """The name from ``ARGUMENTS`` that each positional argument of a metric stands for.

    Arguments with another name stand for the missing names of ``(example, outputs)``, or of ``(outputs, gold)`` if
    there is ``gold``. Arguments with another name and a default are ignored.

    Raises:
      MetricError: for other names.
    """
    names = []
    for parameter in inspect.signature(metric).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.KEYWORD_ONLY):
            continue
        if parameter.name not in ARGUMENTS and parameter.default is not parameter.empty:
            break
        names.append(parameter.name)
    unknown = [name for name in names if name not in ARGUMENTS]
    free = [name for name in (("outputs",) if "gold" in names else ("example", "outputs")) if name not in names]
    if len(unknown) > len(free):
        raise MetricError(
            f"the metric {name_of(metric)!r} has the arguments {', '.join(names)}; known are {', '.join(ARGUMENTS)}, "
            "such as (example, outputs)"
        )
    stand_ins = iter(free[-len(unknown) :] if unknown else ())
    return tuple(name if name in ARGUMENTS else next(stand_ins) for name in names)


def row_of(example: Example) -> dict[str, Any]:
    """The fields of an example as one dict, gold after inputs."""
    return {**example.inputs, **example.gold}


def read_score(returned: Any, metric: str, outputs: Mapping[str, Any], example: Example) -> Score:
    """The return value of a metric as a ``Score``.

    Raises:
      NonFiniteScore: for NaN, an infinity or a number above 1e100 in size.
      MetricError: for anything that is no score; names the metric and the example.
    """
    score: Score
    match returned:
        case Score():
            score = returned
        case tuple((value, feedback)):
            score = Score(value, feedback)
        case _:
            score = Score(returned)
    values = {"": score.value, **score.parts}
    if not isinstance(score.feedback, str) or not all(is_number(value) for value in values.values()):
        raise MetricError(
            f"the metric {metric!r} returned {returned!r:.{_LONGEST}} on example {example.id!r}, expected a number, a "
            f"number and a text, or Score(value, feedback, parts){_NO_RETURN * (returned is None)}"
        )
    for part, value in values.items():
        finite_score(float(value), f"{metric} ({part})" if part else metric, outputs, example)
    parts = {part: float(value) for part, value in score.parts.items()}
    return Score(float(score.value), valid_text(score.feedback), parts)


def is_number(value: Any) -> bool:
    """Whether a value is a number, true and false and NumPy's scalars among them."""
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    return isinstance(value, numbers.Real)


def finite_score(score: float, metric: str, outputs: Mapping[str, Any], example: Example) -> float:
    """The score itself.

    Raises:
      NonFiniteScore: if it is NaN, infinite or above 1e100 in size; names the metric, the example and what it compared.
    """
    if is_finite_score(score):
        return score
    raise NonFiniteScore(
        f"the metric {metric!r} returned {score} on example {example.id!r}, expected a finite number, such as 0.0 for "
        f"what cannot be scored; outputs {shortened(outputs)}, gold {shortened(example.gold)}"
    )


def shortened(fields: Mapping[str, Any]) -> str:
    """Fields for a message, as plain data."""
    text = repr(thaw(fields))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def is_finite_score(score: float) -> bool:
    """Whether scores can be averaged with it: neither NaN nor infinite, and at most 1e100 in size."""
    return abs(score) <= _LARGEST_SCORE


def name_of(metric: Callable[..., Any]) -> str:
    """A metric's name, for messages."""
    return getattr(metric, "__name__", repr(metric))
