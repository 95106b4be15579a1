"""Functions of the user's as components: they run unchanged, with the tuned prompt or settings in place."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import dataclasses
import functools
import inspect
import threading
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optimas_jax.core.component import Component, ComponentFailure, RunContext
from optimas_jax.core.program import ProgramEnded
from optimas_jax.core.text.frames import describe_error
from optimas_jax.core.types import Outcome, StopRun, digest, thaw
from optimas_jax.core.values import Demo, Grid, Hyperparameters, Prompt, Space, Value, value_digest
from optimas_jax.llm.base import FunctionCall
from optimas_jax.llm.component import LanguageModel
from optimas_jax.llm.render import render_demos
from optimas_jax.programs.declared import DeclarationError, Declared
from optimas_jax.programs.discover import without_partials
from optimas_jax.programs.identity import constants_of, globals_read, identity_of, source_of, surroundings_of
from optimas_jax.programs.plain import check_kind, from_fields, from_plain, to_fields, to_plain
from optimas_jax.programs.prompts import PromptDeclaration, SettingDeclaration

_UNNAMED = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY)
_GIVEN = ("seed", "temperature")  # arguments that the run passes to a function that has them


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
      name: by default the function's name, of a lambda the variable's.
      description: by default the first line of its docstring.
      effect: whether its results are taped, so that none is computed or paid for twice; by default for a function with
        a prompt.
      timeout: seconds, after which a call has failed.
      on_error: ``count`` makes an exception a failed call, which is made again when the run is resumed; too many end
        the run (``core.running.watch``). ``stop`` ends it at the first one.
      tuned: the prompt or the settings, by the argument of the function that gets it (a prompt as a ``PromptText``), or
        by the variable of its module that the function's own code reads (a prompt as its text): existing code stays as
        it is. What the function writes to variables of its module is then lost.

    Raises:
      DeclarationError: for a function with ``yield``, a method declared inside its class, an argument to tune that the
        function does not read, or types that cannot be recorded.
      TypeError: for a value that is no function.

    Example:
      ```python
      @oj.component
      def search(question: str) -> list[str]:
          return [f"About {question}"]

      @oj.component(prompt=oj.prompt("Answer briefly."), timeout=60)
      async def ask(prompt, question):
          return f"{prompt.text} {question}"
      ```
    """
    if function is None:
        given = {"name": name, "description": description, "effect": effect, "timeout": timeout, "on_error": on_error}
        return functools.partial(component, **given, **tuned)
    check_on_error(on_error)
    wrong = [name for name, part in tuned.items() if not isinstance(part, PromptDeclaration | SettingDeclaration)]
    if wrong:
        raise DeclarationError(f"{', '.join(wrong)} of a component: expected prompt(...) or setting(...)")
    for declared in tuned.values():
        if isinstance(declared, PromptDeclaration):
            declared.check_own()
    check_timeout(timeout)
    named = without_partials(function)
    called = getattr(named, "__name__", type(named).__name__).replace("<lambda>", "")
    doc = (inspect.getdoc(named) or "").split("\n")[0]
    about_prompt = next((part.description for part in tuned.values() if isinstance(part, PromptDeclaration)), "")
    return FunctionDeclaration(
        function,
        tuned,
        bool(about_prompt) if effect is None else effect,
        timeout,
        on_error,
        name=name or called,
        description=description or doc or about_prompt or f"Computes {name or called or 'a value'}.",
    )


def check_on_error(on_error: str) -> None:
    """Raises ``DeclarationError`` for a policy that does not exist."""
    if on_error not in ("count", "stop"):
        raise DeclarationError(f"on_error is {on_error!r}, expected 'count' or 'stop'")


def check_timeout(timeout: Any) -> None:
    """Raises ``DeclarationError`` unless a time limit is a number above 0 or None."""
    is_number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
    if timeout is not None and not (is_number and timeout > 0):
        raise DeclarationError(f"timeout is {timeout!r}, expected seconds above 0, or None for no limit")


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
        label = names["name"] or "<lambda>"
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise DeclarationError(
                f"the function {label!r} has a yield: what a component returns is recorded as a whole, so return a list"
            )
        self._signature = inspect.signature(function)
        if next(iter(self._signature.parameters), "") == "self":
            raise DeclarationError(
                f"{label!r} is declared in a class, where no object is known yet: declare it of an object, such as "
                f"self.{label} = component(self.{label}) in __init__"
            )
        odd = [argument.name for argument in self._signature.parameters.values() if argument.kind in _UNNAMED]
        if odd:
            raise DeclarationError(
                f"the function {label!r} takes {', '.join(odd)} without a name: arguments of components are "
                "recorded by their names"
            )
        read = [*self._signature.parameters, *globals_read(function)]
        if missing := [name for name in tuned if name not in read]:
            raise DeclarationError(
                f"the function {label!r} has no argument and reads no variable {', '.join(missing)}; it has "
                f"{', '.join(read)}"
            )
        kinds = {type(declared) for declared in tuned.values()}
        if len(kinds) > 1 or (PromptDeclaration in kinds and len(tuned) > 1):
            raise DeclarationError(
                f"component {label!r} tunes {', '.join(tuned)}: one prompt, or any number of settings; make a "
                "component of its own of the rest"
            )

    def build(self, language_model: LanguageModel) -> Component:
        space, default = self._tunable()
        around = [source_of(self._function), *surroundings_of(self._function, self._tuned)] if self._effect else []
        run = functools.partial(self._run, around)
        ends, metered = self._timeout is not None, not isinstance(default, Prompt)
        return Component(self.name, self.description, (), (), run, space, default, ends=ends, metered=metered)

    @property
    def declared(self) -> Any:
        return [self.description, {name: part.declared for name, part in self._tuned.items()}]

    @property
    def code(self) -> Any:
        return identity_of(self._function, self._tuned)

    def check(self) -> None:
        for name, argument in self._signature.parameters.items():
            if name in (*self._tuned, *_GIVEN):
                continue
            check_kind(self._hints.get(name), f"argument {name!r} of component {self.name!r}")
            if argument.default is not argument.empty:
                to_plain(argument.default, f"the default of argument {name!r} of component {self.name!r}")
        check_kind(self._hints.get("return"), f"what component {self.name!r} returns")

    def _tunable(self) -> tuple[Space | None, Value | None]:
        """The space of the tuned prompt or settings, and their default."""
        space: Space | None = None
        default: Value | None = None
        for declared in self._tuned.values():
            if isinstance(declared, PromptDeclaration):
                space, default = declared.space, Prompt(declared.instruction, declared.demos)
        settings = {name: part for name, part in self._tuned.items() if isinstance(part, SettingDeclaration)}
        if settings:
            space = Grid({name: part.space.settings["value"] for name, part in settings.items()})
            default = Hyperparameters({name: part.default["value"] for name, part in settings.items()})
        return space, default

    def restore(self, outputs: Mapping[str, Any]) -> Any:
        return from_fields(self.name, thaw(outputs), self._hints.get("return"))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the function with the tuned prompt or settings in place; outside of a run with the defaults."""
        try:
            bound = self._signature.replace(parameters=self._parameters).bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"component {self.name!r}: {error}") from None
        if self.outside():
            tuned = self._tuned_to(self._tunable()[1])
            return self._in_place(tuned)(**_flat(bound), **self._arguments(tuned))
        given = {name: bound.arguments[name] for name in _GIVEN if name in bound.arguments}
        bound.apply_defaults()
        fields = {key: value for key, value in _flat(bound).items() if key not in _GIVEN}
        return self.call(self.plain({**fields, **given}))

    @functools.cached_property
    def _parameters(self) -> list[inspect.Parameter]:
        """Arguments that the program passes; it may leave out arguments that the run provides."""
        passed = [argument for name, argument in self._signature.parameters.items() if name not in self._tuned]
        of_run = [argument for argument in passed if argument.name in _GIVEN]
        optional = [argument.replace(kind=argument.KEYWORD_ONLY, default=None) for argument in of_run]
        others = [argument for argument in passed if argument.name not in _GIVEN]
        last = [argument for argument in others if argument.kind in (argument.KEYWORD_ONLY, argument.VAR_KEYWORD)]
        first = [argument for argument in others if argument not in last]
        return sorted([*first, *optional, *last], key=lambda argument: argument.kind)

    @functools.cached_property
    def _hints(self) -> Mapping[str, Any]:
        """Declared types of the arguments and of the result, as far as they can be read."""
        try:
            return typing.get_type_hints(self._function)
        except Exception:  # names that exist for type checkers alone, and callables without hints
            return {}

    def _tuned_to(self, value: Value | None) -> dict[str, Any]:
        """Tuned prompt or settings, by name, under a value of the component."""
        match value:
            case Prompt(instruction, demos):
                return dict.fromkeys(self._tuned, PromptText(instruction, demos))
            case Hyperparameters(settings):
                return dict(settings)
            case _:
                return {}

    def _arguments(self, tuned: Mapping[str, Any]) -> dict[str, Any]:
        """The tuned prompt or settings that the function gets as arguments."""
        return {name: part for name, part in tuned.items() if name in self._signature.parameters}

    def _in_place(self, tuned: Mapping[str, Any]) -> Callable[..., Any]:
        """A copy of the function in which the other tuned parts replace variables of its module: a prompt as its text.
        As it is a copy, calls with different values can run side by side."""
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

    async def _run(
        self, around: Sequence[Any], fields: Mapping[str, Any], value: Value | None, context: RunContext
    ) -> Mapping[str, Any]:
        """Calls the function, or reads its result from the tape.

        Args:
          around: source of the function, and of the code that it calls, if its results are taped.
        """

        async def perform() -> Mapping[str, Any]:
            return await self._perform(fields, value, context)

        try:
            taped = getattr(context.completer, "call", None)
            if not self._effect or taped is None:
                return await perform()
            source, *others = around
            under = "" if value is None else value_digest(value)
            parts = (source, constants_of(self._function, self._tuned), fields, under)
            key = digest(self.name, *parts, context.seed, context.temperature, *others)
            return (await taped(FunctionCall(key, context.component, perform))).outputs
        except (StopRun, ComponentFailure):
            raise
        except Exception as error:
            if self._on_error == "stop":
                raise
            raise ComponentFailure(Outcome.CRASHED, describe_error(error)) from error

    async def _perform(self, fields: Mapping[str, Any], value: Value | None, context: RunContext) -> Mapping[str, Any]:
        """Calls the function within its time limit; returns its result as fields."""
        tuned = self._tuned_to(value)
        typed = {name: from_plain(self._hints.get(name), item) for name, item in fields.items()}
        arguments = {**typed, **self._arguments(tuned)}
        for name, item in (("seed", context.seed), ("temperature", context.temperature)):
            parameter = self._signature.parameters.get(name)
            if parameter is not None and (item is not None or parameter.default is parameter.empty):
                arguments.setdefault(name, item)
        try:
            async with asyncio.timeout(self._timeout) as limit:
                returned = await call_function(self._in_place(tuned), arguments)
        except TimeoutError:
            if not limit.expired():
                raise
            raise ComponentFailure(Outcome.TIMEOUT, f"no answer within {self._timeout} s") from None
        outputs = to_fields(self.name, returned, f"what component {self.name!r} returned")
        self.restore(outputs)  # a result that does not fit the declared type fails this call
        return outputs


def _flat(bound: inspect.BoundArguments) -> dict[str, Any]:
    """Arguments by name, with the content of ``**options`` in place of the dict."""
    flat = {}
    for name, value in bound.arguments.items():
        flat |= value if bound.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD else {name: value}
    return flat


async def call_function(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Calls a function and returns its result: an ``async`` function on the loop, a plain one in a new thread that
    knows the run."""
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
        """Calls the function, and hands its result or error to the loop."""
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
