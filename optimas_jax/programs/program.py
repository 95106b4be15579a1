"""A program: a function of the user's that calls components."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from optimas_jax.core.component import ComponentFailure, ProgramFailure
from optimas_jax.core.scoring import metric_arguments, name_of
from optimas_jax.core.system import System
from optimas_jax.core.text.frames import describe_error, first_of
from optimas_jax.core.types import Outcome, StopRun, digest
from optimas_jax.llm.component import LanguageModel
from optimas_jax.programs.declared import DeclarationError, Declared
from optimas_jax.programs.discover import declared_in, function_of
from optimas_jax.programs.functions import call_function, check_on_error, check_timeout
from optimas_jax.programs.identity import identity_of
from optimas_jax.programs.plain import PlainError, check_kind, from_fields, to_fields

OUTPUT = "output"  # field that holds a program's result if it is no dict


def program(
    function: Program | Callable[..., Any] | None = None,
    *,
    components: Sequence[Declared] = (),
    name: str = "",
    on_error: str = "count",
    timeout: float | None = None,
    alone: bool = False,
) -> Any:
    """Declares a program; a decorator, with or without arguments. Where a program is asked for, a function will do.

    Args:
      components: components that it calls, but that cannot be found by following the names in its code.
      name: by default the function's name.
      on_error: ``count`` makes an exception of the program a failed run; too many of them end the optimisation
        (``core.running.watch``). ``stop`` ends it at the first one.
      timeout: seconds, after which a run has failed. A function that blocks in a thread is left behind, and ends at its
        next call; an ``async`` one must await something to be ended.
      alone: whether runs go one at a time: for a program whose calls come from threads or processes that cannot tell
        which run they belong to (``bridges``).

    Raises:
      DeclarationError: it is no function, has no components, two components with one name, or types that cannot be
        recorded.

    Example:
      ```python
      answer = oj.prompt("Answer the question.")

      @oj.program(timeout=120)
      async def ask(question):
          return {"answer": await answer(question=question)}
      ```
    """
    if function is None:
        given = {"components": components, "name": name, "on_error": on_error, "timeout": timeout, "alone": alone}
        return functools.partial(program, **given)
    if isinstance(function, Program):
        return function
    if isinstance(function, Declared):
        raise DeclarationError(f"the program is component {function.name!r}, expected a function that calls components")
    if inspect.iscoroutine(function):
        function.close()  # otherwise Python warns as well
        called = function.__name__
        raise DeclarationError(f"the program is what a call of {called!r} returned: give the function itself, {called}")
    if not callable(function) or isinstance(function, type):
        raise DeclarationError(f"the program is {function!r}, expected a function that calls components")
    check_on_error(on_error)
    check_timeout(timeout)
    inner = function_of(function)
    title = name or getattr(function, "__name__", type(function).__name__)
    if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
        raise DeclarationError(f"the program {title!r} has a yield: return its result as a whole, such as a list")
    parts = {id(part): part for part in components}
    for variable, part in declared_in(function):
        part.name = part.name or variable
        parts.setdefault(id(part), part)
    names = [part.name for part in parts.values()]
    if nameless := [part.description for part in parts.values() if not part.name]:
        raise DeclarationError(f"components of the program {title!r} without a name: {nameless}: give them name=")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DeclarationError(
            f"two components of the program {title!r} have the name {', '.join(twice)}: give one another, by name="
        )
    if not names:
        raise DeclarationError(
            f"the program {title!r} calls no component: declare some with optimas_jax.prompt, setting and component, "
            "or name them in program(components=[...])"
        )
    try:
        for part in parts.values():
            part.check()
        check_kind(Program(function, (), title).returns, f"what the program {title!r} returns")
    except PlainError as error:
        raise DeclarationError(str(error)) from None
    return Program(function, tuple(parts.values()), title, on_error, timeout, alone)


@dataclasses.dataclass(frozen=True)
class Program:
    """A function that calls components.

    Attributes:
      function: ``async`` or plain; its arguments are fields of an example.
      components: components that it may call.
      name: for folders and reports.
      on_error, timeout, alone: see ``program``.
    """

    function: Callable[..., Any]
    components: tuple[Declared, ...]
    name: str
    on_error: str = "count"
    timeout: float | None = None
    alone: bool = False

    @functools.cached_property
    def _lock(self) -> asyncio.Lock:
        """Lock that a run holds if the runs of the program go one at a time."""
        return asyncio.Lock()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the function itself."""
        return self.function(*args, **kwargs)

    @property
    def returns(self) -> Any:
        """The declared type of the result; None if there is none."""
        try:
            return typing.get_type_hints(function_of(self.function)).get("return")
        except Exception:  # names that exist for type checkers alone
            return None

    def inputs_of(self, columns: Collection[str]) -> tuple[str, ...]:
        """Names of the columns that the program reads.

        Raises:
          DeclarationError: an argument without a default is no column.
        """
        arguments = inspect.signature(self.function).parameters.values()
        named = [
            argument for argument in arguments if argument.kind not in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD)
        ]
        missing = [
            argument.name for argument in named if argument.default is argument.empty and argument.name not in columns
        ]
        if missing or not named:
            raise DeclarationError(
                f"the program {self.name!r} reads {', '.join(missing) or 'nothing by name'}; the data has the columns "
                f"{', '.join(columns)}: arguments of a program are columns, so rename one of them"
            )
        return tuple(argument.name for argument in named if argument.name in columns)

    def system(self, metric: Callable[..., Any], inputs: Sequence[str], language_model: LanguageModel) -> System:
        """The program as a system.

        Args:
          metric: a function of the arguments in ``core.scoring``; it gets the program's result as ``outputs``.
          inputs: fields of an example that the program reads.
          language_model: of the run.
        """

        async def run(fields: Mapping[str, Any]) -> Mapping[str, Any]:
            """Calls the function within its time limit; returns its result as fields."""
            try:
                async with asyncio.timeout(self.timeout) as limit:
                    value = await call_function(self.function, fields)
            except (ComponentFailure, StopRun):
                raise
            except Exception as group:
                error = first_of(group)
                if limit.expired():
                    detail = f"the program {self.name!r} has no result within {self.timeout:g} s"
                    rest = "; what it left behind may still ask for agents, and the run that is then in flight has it"
                    raise ProgramFailure(Outcome.TIMEOUT, detail + rest * self.alone) from None
                if self.on_error == "stop" or isinstance(error, ComponentFailure | StopRun):
                    raise
                detail = f"the program {self.name!r}: {describe_error(error)}"
                raise ProgramFailure(Outcome.CRASHED, detail) from error
            return to_fields(OUTPUT, value, f"what the program {self.name!r} returned")

        return System(
            components=tuple(part.build(language_model) for part in self.components),
            input_fields=tuple(inputs),
            output_fields=(),
            metric=metric_of(metric, self.returns),
            program=run,
            alone=self._lock if self.alone else None,
            declared={f"component {part.name!r}": digest(part.declared) for part in self.components},
            code={
                f"the program {self.name!r}": digest(identity_of(self.function)),
                f"the metric {name_of(metric)!r}": digest(identity_of(metric)),
                **{f"component {part.name!r}": digest(part.code) for part in self.components if part.code is not None},
            },
        )


def metric_of(metric: Callable[..., Any], kind: Any = None) -> Callable[..., Any]:
    """Wraps a metric, so that it gets a program's result as the program returned it.

    Args:
      kind: declared type of the result; a dataclass or pydantic model is built again from its fields, any other result
        stays plain data.
    """
    names = metric_arguments(metric)

    async def judged(example: Any, outputs: Any, gold: Any, trace: Any, context: Any) -> Any:
        known = {"example": example, "gold": gold, "trace": trace, "context": context}
        known["outputs"] = from_fields(OUTPUT, outputs, kind)
        return await call_function(functools.partial(metric, *(known[name] for name in names)), {})

    def scored(example: Any, outputs: Any, gold: Any, trace: Any, context: Any) -> Any:
        return judged(example, outputs, gold, trace, context)  # in a thread: a slow metric holds up nothing else

    wrapper = judged if inspect.iscoroutinefunction(metric) else scored  # an ``async`` metric is a judge
    wrapper.__name__ = name_of(metric)
    return wrapper
