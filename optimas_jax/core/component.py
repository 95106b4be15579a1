"""Components: what a system calls by name, and how a call of one can end."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from optimas_jax.core.cost import Cost
from optimas_jax.core.graph import GraphError
from optimas_jax.core.text.frames import UserBug
from optimas_jax.core.types import Outcome
from optimas_jax.core.values import Space, Value, check_value


class ComponentFailure(Exception):
    """A component's model or tool gave no usable answer: it becomes the outcome of the component's call. A program may
    catch it; a component of yours may raise it. It raises nothing by itself.

    Attributes:
      outcome: what went wrong: ``parse_error``, ``refused``, ``truncated``, ``timeout``, ``rate_limited``, ``crashed``,
        ``over_budget``.
      detail: the reason, as text.

    Example:
      ```python
      async def careful(question):
          try:
              return {"answer": await answer(question=question)}
          except oj.ComponentFailure as failure:
              return {"answer": f"no answer: {failure.outcome}"}
      ```
    """

    def __init__(self, outcome: Outcome, detail: str = ""):
        super().__init__(f"{outcome}: {detail}")
        self.outcome, self.detail = outcome, detail


class ProgramFailure(ComponentFailure):
    """Ends a run as failed because the program itself raised an exception, not a component."""


class ComponentBug(UserBug):
    """A component, the program or the metric raised an exception other than ``ComponentFailure``: stops the run at
    once."""


@dataclasses.dataclass(frozen=True)
class RunContext:
    """Arguments of a component's call besides inputs and value.

    Attributes:
      completer: answers completion requests (``llm.base.Completer``); opaque to ``core``.
      seed: seed of this component in this run.
      component: name of the component, the role of its requests.
      temperature: sampling temperature instead of the component's default, or None.
      notes: reasoning of a model before its answers (``Call.reasoning``); components add to it.
      cuts: how used answers were cut short (``Call.detail``); components add to it.
      costs: costs of the results of ``completer``, which adds them itself; a component adds what it pays elsewhere.
    """

    completer: Any
    seed: int
    component: str
    temperature: float | None = None
    notes: list[str] = dataclasses.field(default_factory=list, compare=False)
    cuts: list[str] = dataclasses.field(default_factory=list, compare=False)
    costs: list[Cost] = dataclasses.field(default_factory=list, compare=False)


RunFunction = Callable[[Mapping[str, Any], Value | None, RunContext], Awaitable[Mapping[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Route:
    """Rule that says which requests of a framework are calls of a component.

    Attributes:
      model: model name of the requests.
      prefix: beginning of their first system message; "" for any.
      headers: headers of the requests, with their values.
    """

    model: str
    prefix: str = ""
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def is_rule(self) -> bool:
        """Whether it selects only some of the requests with its model name."""
        return bool(self.prefix or self.headers)

    def __str__(self) -> str:
        rules = [f"system message begins {self.prefix!r}"] if self.prefix else []
        rules += [f"header {name}: {value}" for name, value in self.headers.items()]
        return f"model {self.model!r}" + "".join(f", {rule}" for rule in rules)


@dataclasses.dataclass(frozen=True)
class Component:
    """A named node.

    Attributes:
      name: unique in the system.
      description: one sentence on its purpose; proposers and local reward functions read it.
      inputs: names of the fields it reads: system inputs or other components' outputs. May be empty in a program, which
        then calls it with any fields.
      outputs: names of the fields it writes; may be empty in a program.
      run: ``async (inputs, value, context) -> outputs``; raises ``ComponentFailure`` for a malformed answer.
      space: what may be tuned, or None.
      default: its value before optimisation; None if and only if there is no space.
      ends: whether every call of it is sure to end; a function of the user's without ``timeout`` may not end.
      metered: whether the tokens of its calls are counted; a client of the user's own does not report its tokens.
      route: rule for the requests that are its calls; None if the program calls it directly.
    """

    name: str
    description: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    run: RunFunction
    space: Space | None = None
    default: Value | None = None
    ends: bool = True
    metered: bool = True
    route: Route | None = None

    def __post_init__(self) -> None:
        if self.space is None and self.default is not None:
            raise GraphError(f"component {self.name!r} has a default value but no space to check it against")
        if self.space is not None:
            try:
                check_value(self.space, self.default)
            except ValueError as error:
                raise GraphError(f"default value of component {self.name!r}: {error}") from error
