"""A program: a function of the user's that calls components."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from optimas_jax.core.scoring import metric_arguments, name_of
from optimas_jax.core.system import System
from optimas_jax.llm.component import LanguageModel
from optimas_jax.programs.declared import DeclarationError, Declared
from optimas_jax.programs.discover import declared_in
from optimas_jax.programs.functions import call_function
from optimas_jax.programs.plain import from_fields, to_fields

OUTPUT = "output"  # field of a program's output that is no dict


def program(
    function: Program | Callable[..., Any] | None = None, *, components: Sequence[Declared] = (), name: str = ""
) -> Any:
    """Declares a program; a decorator, with or without arguments. Where a program is asked for, a function will do.

    Args:
      components: that it calls and that are not found by following the names in its code.
      name: by default the function's name.

    Raises:
      DeclarationError: without components, or for two of one name.
    """
    if function is None:
        return functools.partial(program, components=components, name=name)
    if isinstance(function, Program):
        return function
    found = {id(one): one for one in components}
    for variable, one in declared_in(function):
        one.name = one.name or variable
        found.setdefault(id(one), one)
    title = name or getattr(function, "__name__", type(function).__name__)
    names = [one.name for one in found.values()]
    if nameless := [one.description for one in found.values() if not one.name]:
        raise DeclarationError(f"components of the program {title!r} without a name: {nameless}: give them name=")
    if twice := sorted({one for one in names if names.count(one) > 1}):
        raise DeclarationError(f"two components of the program {title!r} have the name {', '.join(twice)}: give name=")
    if not names:
        raise DeclarationError(
            f"the program {title!r} calls no component: declare some with optimas_jax.prompt, setting and component, "
            "or name them in program(components=[...])"
        )
    return Program(function, tuple(found.values()), title)


@dataclasses.dataclass(frozen=True)
class Program:
    """A function that calls components.

    Attributes:
      function: ``async`` or plain; its arguments are fields of an example.
      components: that it may call.
      name: for folders and reports.
    """

    function: Callable[..., Any]
    components: tuple[Declared, ...]
    name: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the function itself."""
        return self.function(*args, **kwargs)

    @property
    def returns(self) -> Any:
        """What the function says that it returns."""
        try:
            return typing.get_type_hints(self.function).get("return")
        except Exception:  # names that exist for type checkers alone
            return None

    def inputs_of(self, columns: Collection[str]) -> tuple[str, ...]:
        """The fields that the program reads of data with some columns.

        Raises:
          DeclarationError: an argument without a default is no column.
        """
        arguments = inspect.signature(self.function).parameters.values()
        named = [one for one in arguments if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
        missing = [one.name for one in named if one.default is one.empty and one.name not in columns]
        if missing or not named:
            raise DeclarationError(
                f"the program {self.name!r} reads {', '.join(missing) or 'nothing'}; the data has {', '.join(columns)}"
            )
        return tuple(one.name for one in named if one.name in columns)

    def system(self, metric: Callable[..., Any], inputs: Sequence[str], language_model: LanguageModel) -> System:
        """The program as a system.

        Args:
          metric: of what its arguments name (``core.scoring``); it gets what the program returns.
          inputs: fields of an example that the program reads.
          language_model: of the run.
        """

        async def run(fields: Mapping[str, Any]) -> Mapping[str, Any]:
            value = await call_function(self.function, fields)
            return to_fields(OUTPUT, value, f"what the program {self.name!r} returned")

        return System(
            components=tuple(one.build(language_model) for one in self.components),
            input_fields=tuple(inputs),
            output_fields=(),
            metric=metric_of(metric, self.returns),
            program=run,
        )


def metric_of(metric: Callable[..., Any], kind: Any = None) -> Callable[..., Any]:
    """A metric that gets a program's outputs as the program returned them.

    Args:
      kind: that the program returns, a dataclass or a pydantic model; anything else is left as it is.
    """
    names = metric_arguments(metric)

    def scored(example: Any, outputs: Any, gold: Any, trace: Any, context: Any) -> Any:
        known = {"example": example, "gold": gold, "trace": trace, "context": context}
        known["outputs"] = from_fields(OUTPUT, outputs, kind)
        return metric(*(known[name] for name in names))

    async def judged(example: Any, outputs: Any, gold: Any, trace: Any, context: Any) -> Any:
        return await scored(example, outputs, gold, trace, context)

    wrapper = judged if inspect.iscoroutinefunction(metric) else scored
    wrapper.__name__ = name_of(metric)
    return wrapper
