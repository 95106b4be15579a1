"""Own steps of a search: plain functions, ``async`` or not, that propose, pick, accept or score in the place of what is
there, and what each of them is given.

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

from optimas_jax.core.json_text import shown
from optimas_jax.core.types import Call, Example, Trace
from optimas_jax.core.values import Space, Value
from optimas_jax.search.optimisers.registry import OWN

_NAME = re.compile(r"[A-Za-z_]\w*")


class HookError(ValueError):
    """A hook or callback that cannot be used; raised before anything is paid for."""


@dataclasses.dataclass(frozen=True)
class Reached:
    """A run of the whole program on a training input, in which the component was called.

    Attributes:
      example: the row: ``inputs`` of the program, and ``gold``, which the metric compares with.
      calls: of the component, each with its ``inputs``, ``outputs`` and ``outcome``.
      trace: the whole run: all calls, and the program's ``outputs``.
    """

    example: Example
    calls: tuple[Call, ...]
    trace: Trace

    @property
    def score(self) -> float:
        """What the metric gave the run."""
        return self.trace.score

    @property
    def feedback(self) -> str:
        """Why, in the metric's words; "" where it says nothing."""
        return self.trace.feedback


@dataclasses.dataclass(frozen=True)
class Earlier:
    """A value that was tried in the place of the one in use.

    Attributes:
      value: it; of a prompt the instruction alone is told apart.
      score: estimated mean score under it, or None where it is not known.
      refused: why the gate refused it, or "".
    """

    value: Value
    score: float | None
    refused: str = ""


@dataclasses.dataclass(frozen=True)
class ProposeTask:
    """What an own proposer is given: one component whose value is to be improved.

    Attributes:
      component, description: its name, and what it is for.
      inputs, outputs: names of the fields that it reads and writes; empty where a program has not told them.
      current: the value in use: ``Prompt``, ``Hyperparameters``, ``Choice`` or, of a component that chooses for every
        input, ``PerInstance``.
      space: what is allowed: ``PromptSpace``, ``Grid`` or ``Models``.
      examples: training inputs of the iteration, in random order.
      history: values tried under this configuration, the oldest first.
      iteration: from 0.
      seed: names all randomness; a repetition has the same one.
      complete: ``complete(text, temperature=0.7)``: the answer of the run's proposer model, "" where there was none. It
        is taped, so that a repetition is free, and counts for the budget. An ``async`` proposer awaits it. The same
        text again is another draw.
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
      name: it.
      gap: possible gain of the score with all others unchanged, as collected groups tell; 0 without any.
      visits: iterations that it had.
      gains: gain of the validation score of each of its tested proposals; 0 for a refused one.
      cost: mean tokens of a run of the program from it on, which a test repeats for every example.
    """

    name: str
    gap: float
    visits: int
    gains: tuple[float, ...]
    cost: float


@dataclasses.dataclass(frozen=True)
class PickTask:
    """What an own pick rule is given.

    Attributes:
      components: to choose from.
      iteration: from 0.
      seed: names the randomness of the iteration.
    """

    components: tuple[Pickable, ...]
    iteration: int
    seed: int


@dataclasses.dataclass(frozen=True)
class AcceptTask:
    """What an own acceptance is given: a proposal after some validation examples.

    Attributes:
      component: its name.
      kind: the optimiser that proposed, ``own:NAME`` for an own one.
      current, proposal: the value in use and the proposed one.
      before, after: scores under each of them of the same examples, in the same order; minus weighted costs where the
        objective has some.
      n: validation examples in all; after them ``continue`` is no answer.
      looks: numbers of examples after which it is asked.
      expected_gain: that the race estimated on training inputs.
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
    """Own steps of a search; see the module for what they are given and return.

    Attributes:
      propose: a function, or several by name. Each runs beside the optimisers in ``config.optimize.proposers``, or
        where that names it: ``own:NAME`` alone puts it in their place.
      pick: in place of ``config.optimize.pick``.
      accept: in place of ``config.optimize.gate``, whose level does not cover what it accepts.
      local_reward: in place of trained local rewards: in the race, in their alignment, where a component chooses among
        several outputs.

    Raises:
      HookError: what is given is no function of the expected arguments.

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
        for name, one in self.proposers.items():
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise HookError(
                    f"an own proposer has the name {shown(name)}: letters, digits and _ are allowed; give it one, "
                    'propose={"NAME": function}'
                )
            check_callable(one, f"the own proposer {name!r}", "task")
        if isinstance(self.propose, Mapping) and not self.propose:
            raise HookError("propose is empty: give a function, several by name, or leave it out")
        for what, one, arguments in (
            ("pick", self.pick, ("task",)),
            ("accept", self.accept, ("task",)),
            ("local_reward", self.local_reward, ("component", "inputs", "candidates")),
        ):
            if one is not None:
                check_callable(one, what, *arguments)

    @property
    def proposers(self) -> Mapping[str, Callable[..., Any]]:
        """Own proposers by name."""
        if self.propose is None:
            return {}
        return self.propose if isinstance(self.propose, Mapping) else {function_name(self.propose): self.propose}

    @property
    def titles(self) -> Mapping[str, Callable[..., Any]]:
        """All own functions, by what messages and identities call them."""
        others = {"pick rule": self.pick, "acceptance": self.accept, "local reward": self.local_reward}
        return {
            **{title("proposer", name): one for name, one in self.proposers.items()},
            **{title(what, function_name(one)): one for what, one in others.items() if one is not None},
        }


def title(what: str, name: str) -> str:
    """What messages call an own function."""
    return f"the own {what} {name!r}"


def function_name(function: Any) -> str:
    """The name of a function; of a partial that of what it calls, of an object that of its class."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)


def own_name(function: Any) -> str:
    """The name of an own function in events and settings."""
    return f"{OWN}{function_name(function)}"


def check_callable(function: Any, what: str, *arguments: str) -> None:
    """Raises ``HookError`` for what is no function of these arguments."""
    expected = f"expected a function of ({', '.join(arguments)})"
    if not callable(function) or isinstance(function, type):
        raise HookError(f"{what} is {shown(function)}, {expected}")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise HookError(f"{what} is {function_name(function)!r}, which has a yield: return the whole result")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of a builtin
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise HookError(f"{what} is {function_name(function)}{signature}, {expected} ({error})") from None
