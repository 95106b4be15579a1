"""Own steps of a search: functions, ``async`` or not, that replace proposing, picking, accepting or scoring, and their
arguments.

    propose(task: ProposeTask) -> list of values
    pick(task: PickTask) -> name of a component
    accept(task: AcceptTask) -> "accept", "refuse" or "continue", or one of them and a reason
    local_reward(component, inputs, candidates) -> a number for each candidate, higher is better
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from optimas_jax.core.text.json_text import shown
from optimas_jax.core.types import Call, Example, Trace
from optimas_jax.core.values import Space, Value
from optimas_jax.search.optimisers.registry import OWN

_NAME = re.compile(r"[A-Za-z_]\w*")


class HookError(ValueError):
    """A hook or callback is unusable; raised before anything is paid for."""


@dataclasses.dataclass(frozen=True)
class Reached:
    """A run of the whole program on a training input, in which the component was called.

    Attributes:
      example: the row: ``inputs`` of the program, and ``gold`` fields for the metric.
      calls: calls of the component, each with its ``inputs``, ``outputs`` and ``outcome``.
      trace: the whole run: all calls, and the program's ``outputs``.
    """

    example: Example
    calls: tuple[Call, ...]
    trace: Trace

    @property
    def score(self) -> float:
        """Score of the run by the metric."""
        return self.trace.score

    @property
    def feedback(self) -> str:
        """Feedback of the metric on the run; "" without any."""
        return self.trace.feedback


@dataclasses.dataclass(frozen=True)
class Earlier:
    """A value that was tried as a replacement of the one in use.

    Attributes:
      value: the value; prompts differ only in their instructions, their demonstrations are those in use.
      score: estimated mean score under it, or None where it is not known.
      refused: why the gate refused it, or "".
    """

    value: Value
    score: float | None
    refused: str = ""


@dataclasses.dataclass(frozen=True)
class ProposeTask:
    """Argument of an own proposer: one component whose value is to be improved.

    Attributes:
      component, description: name and task of the component.
      inputs, outputs: names of the fields that it reads and writes; empty while they are unknown for a program.
      current: the value in use: ``Prompt``, ``Hyperparameters``, ``Choice`` or, for a component that chooses for every
        input, ``PerInstance``.
      space: allowed values: ``PromptSpace``, ``Grid`` or ``Models``.
      examples: training inputs of the iteration, in random order.
      history: values tried under this configuration, the oldest first.
      iteration: number of the iteration, from 0.
      seed: seed of all randomness; a repetition has the same one.
      complete: ``complete(text, temperature=0.7)``: the answer of the run's proposer model, "" for a failed request. It
        is taped, so that a repetition is free, and counts for the budget. An ``async`` proposer awaits it. The same
        text again gives another draw.
    """

    component: str
    description: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    current: Value
    space: Space
    examples: tuple[Reached, ...]
    history: tuple[Earlier, ...]
    iteration: int
    seed: int
    complete: Callable[..., Any] = dataclasses.field(repr=False, compare=False)


@dataclasses.dataclass(frozen=True)
class Pickable:
    """A component with something left to try.

    Attributes:
      name: name of the component.
      gap: possible gain of the score with all others unchanged, estimated from collected groups; 0 without groups.
      visits: number of its iterations so far.
      gains: gain of the validation score of each of its tested proposals; 0 for a refused one.
      cost: mean tokens of a run of the program from this component on, which a test repeats for every example.
    """

    name: str
    gap: float
    visits: int
    gains: tuple[float, ...]
    cost: float


@dataclasses.dataclass(frozen=True)
class PickTask:
    """Argument of an own pick rule.

    Attributes:
      components: components to choose from.
      iteration: number of the iteration, from 0.
      seed: seed of the randomness of the iteration.
    """

    components: tuple[Pickable, ...]
    iteration: int
    seed: int


@dataclasses.dataclass(frozen=True)
class AcceptTask:
    """Argument of an own acceptance: a proposal after some validation examples.

    Attributes:
      component: name of the component.
      kind: the optimiser that proposed, ``own:NAME`` for an own one.
      current, proposal: the value in use and the proposed one.
      before, after: scores of the same examples under each of them, in the same order; minus weighted costs where the
        objective has some.
      n: number of all validation examples; after them ``continue`` is not allowed.
      looks: numbers of examples after which the acceptance is called.
      expected_gain: gain that the race estimated on training inputs.
    """

    component: str
    kind: str
    current: Value
    proposal: Value
    before: tuple[float, ...]
    after: tuple[float, ...]
    n: int
    looks: tuple[int, ...]
    expected_gain: float


@dataclasses.dataclass(frozen=True)
class Hooks:
    """Own steps of a search; see the module for their arguments and return values.

    Attributes:
      propose: a function, or several by name. Each runs beside the optimisers in ``config.optimize.proposers``, or in
        the order given there; ``own:NAME`` alone replaces them.
      pick: replaces ``config.optimize.pick``.
      accept: replaces ``config.optimize.gate``, whose level does not cover what it accepts.
      local_reward: replaces trained local rewards: in the race, in their alignment, and where a component chooses among
        several outputs.

    Raises:
      HookError: a value is no function of the expected arguments.

    Example:
      ```python
      def longer(task):
          return [f"{task.current.instruction} Think first."]

      oj.optimize(rag, grade, "questions.jsonl", hooks=oj.Hooks(propose=longer))
      ```
    """

    propose: Callable[..., Any] | Mapping[str, Callable[..., Any]] | None = None
    pick: Callable[..., Any] | None = None
    accept: Callable[..., Any] | None = None
    local_reward: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        for name, function in self.proposers.items():
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise HookError(
                    f"an own proposer has the name {shown(name)}: letters, digits and _ are allowed; give it one, "
                    'propose={"NAME": function}'
                )
            check_callable(function, f"the own proposer {name!r}", "task")
        if isinstance(self.propose, Mapping) and not self.propose:
            raise HookError("propose is empty: give a function, several by name, or leave it out")
        for what, function, arguments in (
            ("pick", self.pick, ("task",)),
            ("accept", self.accept, ("task",)),
            ("local_reward", self.local_reward, ("component", "inputs", "candidates")),
        ):
            if function is not None:
                check_callable(function, what, *arguments)

    @property
    def proposers(self) -> Mapping[str, Callable[..., Any]]:
        """Own proposers by name."""
        if self.propose is None:
            return {}
        return self.propose if isinstance(self.propose, Mapping) else {function_name(self.propose): self.propose}

    @property
    def titles(self) -> Mapping[str, Callable[..., Any]]:
        """All own functions, by their names in messages and identities."""
        single = {"pick rule": self.pick, "acceptance": self.accept, "local reward": self.local_reward}
        return {
            **{title("proposer", name): function for name, function in self.proposers.items()},
            **{
                title(what, function_name(function)): function
                for what, function in single.items()
                if function is not None
            },
        }


def title(what: str, name: str) -> str:
    """The name of an own function in messages."""
    return f"the own {what} {name!r}"


def function_name(function: Any) -> str:
    """The name of a function; for a partial, of the function that it calls; for an object, of its class."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)


def own_name(function: Any) -> str:
    """The name of an own function in events and settings."""
    return f"{OWN}{function_name(function)}"


def check_callable(function: Any, what: str, *arguments: str) -> None:
    """Checks a hook; raises ``HookError`` if it is no function of these arguments."""
    expected = f"expected a function of ({', '.join(arguments)})"
    if not callable(function) or isinstance(function, type):
        raise HookError(f"{what} is {shown(function)}, {expected}")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise HookError(f"{what} is {function_name(function)!r}, which has a yield: return the whole result")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a builtin without a signature
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise HookError(f"{what} is {function_name(function)}{signature}, {expected} ({error})") from None
