"""Functions of the user's as components: they run as they are, with what is tuned in place."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import dataclasses
import dis
import functools
import inspect
import threading
import traceback
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from optimas_jax.core.component import Component, ComponentFailure, RunContext
from optimas_jax.core.program import ProgramEnded, ProgramError
from optimas_jax.core.types import Outcome, StopRun, digest, thaw
from optimas_jax.core.values import Demo, Grid, Hyperparameters, Prompt, Value, value_digest
from optimas_jax.llm.base import FunctionCall
from optimas_jax.llm.component import LanguageModel
from optimas_jax.llm.render import render_demos
from optimas_jax.programs.declared import DeclarationError, Declared
from optimas_jax.programs.discover import is_library
from optimas_jax.programs.plain import PlainError, from_fields, from_plain, to_fields
from optimas_jax.programs.prompts import PromptDeclaration, SettingDeclaration

_UNNAMED = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY)
_STORES = ("STORE_GLOBAL", "STORE_DEREF")  # instructions that write variables around a function
_GIVEN = ("seed", "temperature")  # arguments that a function gets from the run, if it has them


def component(
    function: Callable[..., Any] | None = None,
    *,
    name: str = "",
    description: str = "",
    effect: bool | None = None,
    timeout: float | None = None,
    on_error: str = "count",
    **tuned: PromptDeclaration | SettingDeclaration,
) -> Any:
    """Declares a function of the user's as a component; a decorator, with or without arguments.

    The function may be ``async`` or plain; a plain one runs in a thread, and an ``async`` program awaits it. It gets
    plain copies of its inputs, in the types that it declares, and may have the arguments ``seed`` and ``temperature``
    of the run. What it gets and returns is recorded: texts, numbers, lists, dicts, dataclasses, pydantic models. A
    program sees its exceptions as ``ComponentFailure``.

    Args:
      name: by default the function's name.
      description: by default the first line of its docstring.
      effect: whether its results are taped, so that none is computed or paid for twice; by default for a function with
        a prompt.
      timeout: seconds, after which a call has failed.
      on_error: ``count`` makes an exception a failed call; ``stop`` ends the run.
      tuned: the prompt or the settings, by the argument of the function that gets it (a prompt as a ``PromptText``), or
        by the variable of its module that the function's own code reads (a prompt as its text): existing code stays as
        it is. What the function writes to variables of its module is then lost.
    """
    if function is None:
        return functools.partial(
            component,
            name=name,
            description=description,
            effect=effect,
            timeout=timeout,
            on_error=on_error,
            **tuned,
        )
    if on_error not in ("count", "stop"):
        raise DeclarationError(f"on_error is {on_error!r}, expected 'count' or 'stop'")
    wrong = [argument for argument, one in tuned.items() if not isinstance(one, PromptDeclaration | SettingDeclaration)]
    if wrong:
        raise DeclarationError(f"{', '.join(wrong)} of a component: expected prompt(...) or setting(...)")
    called = getattr(function, "__name__", type(function).__name__)
    doc = (inspect.getdoc(function) or "").split("\n")[0]
    own = next((one.description for one in tuned.values() if isinstance(one, PromptDeclaration)), "")
    return FunctionDeclaration(
        function,
        tuned,
        bool(own) if effect is None else effect,
        timeout,
        on_error,
        name=name or called,
        description=description or doc or own or f"Computes {called}.",
    )


@dataclasses.dataclass(frozen=True)
class PromptText:
    """A prompt as a user's function gets it.

    Attributes:
      instruction: its text.
      demos: demonstrations: inputs and outputs.
    """

    instruction: str
    demos: tuple[Demo, ...] = ()

    @property
    def text(self) -> str:
        """The instruction, and the demonstrations as ``Label: value`` lines below it."""
        return render_demos(self.instruction, self.demos)

    def __str__(self) -> str:
        return self.text


class FunctionDeclaration(Declared):
    """A function of the user's; see ``component``."""

    def __init__(
        self,
        function: Callable[..., Any],
        tuned: Mapping[str, PromptDeclaration | SettingDeclaration],
        effect: bool,
        timeout: float | None,
        on_error: str,
        **names: str,
    ):
        super().__init__(**names)
        functools.update_wrapper(self, function, updated=())
        self._function, self._tuned, self._effect = function, tuned, effect
        self._timeout, self._on_error = timeout, on_error
        self._signature = inspect.signature(function)
        odd = [one.name for one in self._signature.parameters.values() if one.kind in _UNNAMED]
        if odd:
            raise DeclarationError(
                f"the function {names['name']!r} takes {', '.join(odd)} without a name: arguments of components are "
                "recorded by their names"
            )
        read = [*self._signature.parameters, *globals_read(function)]
        if missing := [name for name in tuned if name not in read]:
            raise DeclarationError(
                f"the function {names['name']!r} has no argument and reads no variable {', '.join(missing)}; it has "
                f"{', '.join(read)}"
            )
        kinds = {type(declared) for declared in tuned.values()}
        if len(kinds) > 1 or (PromptDeclaration in kinds and len(tuned) > 1):
            raise DeclarationError(
                f"component {names['name']!r} tunes {', '.join(tuned)}: one prompt, or any number of settings; make a "
                "component of its own of the rest"
            )

    def build(self, language_model: LanguageModel) -> Component:
        space, default = None, None
        for declared in self._tuned.values():
            if isinstance(declared, PromptDeclaration):
                space, default = declared.space, Prompt(declared.instruction, declared.demos)
        settings = {name: one for name, one in self._tuned.items() if isinstance(one, SettingDeclaration)}
        if settings:
            space = Grid({name: one.space.settings["value"] for name, one in settings.items()})
            default = Hyperparameters({name: one.default["value"] for name, one in settings.items()})
        return Component(self.name, self.description, (), (), self._run, space, default)

    def restore(self, outputs: Mapping[str, Any]) -> Any:
        return from_fields(self.name, thaw(outputs), self._hints.get("return"))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the function, with what is tuned in place; outside of a run with the defaults."""
        bound = self._signature.replace(parameters=self._parameters).bind(*args, **kwargs)
        if self.outside():
            tuned = self._tuned_to(self.build(LanguageModel("")).default)
            return self._in_place(tuned)(**_flat(bound), **self._arguments(tuned))
        given = {name: bound.arguments[name] for name in _GIVEN if name in bound.arguments}
        bound.apply_defaults()
        fields = {key: value for key, value in _flat(bound).items() if key not in _GIVEN}
        return self.call(self.plain({**fields, **given}))

    @functools.cached_property
    def _parameters(self) -> list[inspect.Parameter]:
        """Arguments that the program gives; it may leave out those that the run has."""
        rest = [one for name, one in self._signature.parameters.items() if name not in self._tuned]
        keyword = [one.replace(kind=one.KEYWORD_ONLY, default=None) for one in rest if one.name in _GIVEN]
        others = [one for one in rest if one.name not in _GIVEN]
        last = [one for one in others if one.kind in (one.KEYWORD_ONLY, one.VAR_KEYWORD)]
        return sorted([*(one for one in others if one not in last), *keyword, *last], key=lambda one: one.kind)

    @functools.cached_property
    def _hints(self) -> Mapping[str, Any]:
        """Types of arguments and of what is returned, where they can be read."""
        try:
            return typing.get_type_hints(self._function)
        except Exception:  # names that exist for type checkers alone, and callables without hints
            return {}

    def _tuned_to(self, value: Value | None) -> dict[str, Any]:
        """What is tuned, by name, under a value of the component."""
        match value:
            case Prompt(instruction, demos):
                return dict.fromkeys(self._tuned, PromptText(instruction, demos))
            case Hyperparameters(settings):
                return dict(settings)
            case _:
                return {}

    def _arguments(self, tuned: Mapping[str, Any]) -> dict[str, Any]:
        """The part of what is tuned that the function has as arguments."""
        return {name: one for name, one in tuned.items() if name in self._signature.parameters}

    def _in_place(self, tuned: Mapping[str, Any]) -> Callable[..., Any]:
        """The function, with the rest of what is tuned in the place of the variables of its module: a prompt as its
        text. A copy, so that calls with different values run side by side."""
        names = [name for name in tuned if name not in self._signature.parameters]
        if not names:
            return self._function
        function = self._function
        texts = {name: str(tuned[name]) if isinstance(tuned[name], PromptText) else tuned[name] for name in names}
        variables = {**function.__globals__, **texts}
        parts = (function.__name__, function.__defaults__, function.__closure__)
        copy = types.FunctionType(function.__code__, variables, *parts)
        copy.__kwdefaults__ = function.__kwdefaults__
        return copy

    async def _run(self, fields: Mapping[str, Any], value: Value | None, context: RunContext) -> Mapping[str, Any]:
        tuned = self._tuned_to(value)
        function, arguments = self._in_place(tuned), {**self._typed(fields), **self._arguments(tuned)}
        for name, item in (("seed", context.seed), ("temperature", context.temperature)):
            parameter = self._signature.parameters.get(name)
            if parameter is not None and (item is not None or parameter.default is parameter.empty):
                arguments.setdefault(name, item)

        async def perform() -> Mapping[str, Any]:
            try:
                async with asyncio.timeout(self._timeout) as limit:
                    returned = await call_function(function, arguments)
            except TimeoutError:
                if not limit.expired():
                    raise
                raise ComponentFailure(Outcome.TIMEOUT, f"no answer within {self._timeout} s") from None
            return to_fields(self.name, returned, f"what component {self.name!r} returned")

        try:
            taped = getattr(context.completer, "call", None)
            if not self._effect or taped is None:
                return await perform()
            under = "" if value is None else value_digest(value)
            key = digest(self.name, self._source, self._reads(), fields, under, context.seed, context.temperature)
            return (await taped(FunctionCall(key, context.component, perform))).outputs
        except (StopRun, ComponentFailure, ProgramError, PlainError):
            raise
        except Exception as error:
            if self._on_error == "stop":
                raise
            raise ComponentFailure(Outcome.CRASHED, describe_error(error)) from error

    def _typed(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Recorded arguments in the types that the function declares."""
        return {name: from_plain(self._hints.get(name), value) for name, value in fields.items()}

    def _reads(self) -> dict[str, Any]:
        """Constants that the function's own code reads around it, on which its results may depend: texts and numbers.
        Lists and dicts are left out, and what it writes itself: they may change from call to call."""
        if not inspect.isfunction(self._function):
            return {}
        values = {name: self._function.__globals__[name] for name in globals_read(self._function)}
        values |= inspect.getclosurevars(self._function).nonlocals
        written = {one.argval for one in dis.get_instructions(self._function) if one.opname in _STORES}
        names = [name for name in values if name not in self._tuned and name not in written]
        return {name: values[name] for name in names if isinstance(values[name], str | int | float)}

    @functools.cached_property
    def _source(self) -> str:
        """The function's source, so that an edited one is called again; its name where there is none."""
        try:
            return inspect.getsource(self._function)
        except (OSError, TypeError):
            return getattr(self._function, "__qualname__", repr(type(self._function)))


def _flat(bound: inspect.BoundArguments) -> dict[str, Any]:
    """Arguments by name, with the content of ``**options`` in place of the dict."""
    flat = {}
    for name, value in bound.arguments.items():
        flat |= value if bound.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD else {name: value}
    return flat


def globals_read(function: Callable[..., Any]) -> list[str]:
    """Variables of its module that a function's own code reads."""
    code = getattr(function, "__code__", None)
    return [] if code is None else [name for name in code.co_names if name in function.__globals__]  # type: ignore[attr-defined]


async def call_function(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Calls a function: an ``async`` one here, a plain one in a thread of its own, which knows the run."""
    if inspect.iscoroutinefunction(function):
        return await function(**arguments)
    loop, context = asyncio.get_running_loop(), contextvars.copy_context()
    done: asyncio.Future[Any] = loop.create_future()

    def finish(result: Any, error: BaseException | None) -> None:
        if done.done():  # cancelled, or too late
            return
        if error is None:
            done.set_result(result)
        else:
            done.set_exception(error)

    def work() -> None:
        result, error = None, None
        try:
            result = context.run(function, **arguments)
        except ProgramEnded:
            return
        except StopIteration as raised:  # which no future can hold
            error = RuntimeError("StopIteration")
            error.__cause__ = raised
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(finish, result, error)

    threading.Thread(target=work, name=f"optimas_jax {getattr(function, '__name__', '')}", daemon=True).start()
    result = await done
    return await result if inspect.isawaitable(result) else result


def describe_error(error: BaseException) -> str:
    """One line on an error: its type, its message, and the line of the user's code at which it was raised."""
    frames = [one for one in traceback.extract_tb(error.__traceback__) if not is_library(one.filename)]
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"
