"""Base class of all components that a program calls."""

from __future__ import annotations

import abc
import asyncio
import concurrent.futures
import sys
from collections.abc import Mapping
from typing import Any

from optimas_jax.core.component import Component, ComponentFailure
from optimas_jax.core.program import ProgramEnded, ProgramError, Scope, current_scope, is_running
from optimas_jax.core.running import event_loop
from optimas_jax.core.types import Outcome, freeze, thaw
from optimas_jax.llm.component import LanguageModel
from optimas_jax.programs.plain import PlainError, from_fields, to_plain


class DeclarationError(ValueError):
    """An invalid declaration; raised where it is made, or when the program is built."""


class Declared(abc.ABC):
    """A component that a program calls.

    Attributes:
      name: name of the component; if it is the name of its variable, "" until the program is built.
      description: one sentence on its purpose.
      module: name of the module whose code declares it.
    """

    def __init__(self, name: str, description: str):
        self.name, self.description = name, description
        self.module = _declaring_module()

    @abc.abstractmethod
    def build(self, language_model: LanguageModel) -> Component:
        """The component of a system.

        Args:
          language_model: of the run.
        """

    @property
    def declared(self) -> Any:
        """The declaration as plain data: a run with another declaration is another run."""
        return self.description

    @property
    def code(self) -> Any:
        """Identity of the user's function (``programs.identity``), as plain data; None for components without a
        function."""
        return None

    def check(self) -> None:  # noqa: B027 (most components have no types)
        """Raises ``PlainError`` for declared types and defaults that cannot be recorded."""

    def restore(self, outputs: Mapping[str, Any]) -> Any:
        """The value that the program gets, from the recorded outputs."""
        return from_fields(self.name, thaw(outputs))

    def call(self, inputs: Mapping[str, Any]) -> Any:
        """Calls the component. On the event loop of the run it returns an awaitable, in a thread the result itself.

        Raises:
          ComponentFailure: the component failed: its model or tool gave no usable answer, or its function raised.
          ProgramError: outside of a run.
        """
        if event_loop.running():
            called = self._called(inputs)
            called.__qualname__ = self.name  # the name in Python's warning of a coroutine that is not awaited
            return called
        scope = self._scope()
        answer = asyncio.run_coroutine_threadsafe(self._called(inputs), scope.ended.get_loop())
        try:
            return answer.result()
        except concurrent.futures.CancelledError:
            raise ProgramEnded from None

    async def _called(self, inputs: Mapping[str, Any]) -> Any:
        scope = self._scope()
        if event_loop.running() is not scope.ended.get_loop():
            raise scope.fail(
                ProgramError(
                    f"component {self.name!r} was called on an event loop that the program started (asyncio.run): make "
                    "the program async"
                )
            )
        call = await scope.call(self.name, freeze(inputs))
        if call.outcome is not Outcome.OK:
            raise ComponentFailure(call.outcome, call.detail)
        return self.restore(call.outputs)

    def plain(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Inputs as plain data; an input that cannot be recorded ends the run."""
        try:
            return {key: to_plain(value, f"{self.name}({key})") for key, value in inputs.items()}
        except PlainError as error:
            raise self._scope().fail(error) from error

    def outside(self) -> bool:
        """Whether the caller is outside of a run.

        Raises:
          ProgramError: a program runs in this process, and this thread does not know which run it belongs to.
        """
        if current_scope() is not None:
            return False
        if is_running():
            raise ProgramError(self._where())
        return True

    def _where(self) -> str:
        return (
            f"component {self.name or self.description!r} was called outside of a run, or in a thread that does not "
            "know its run: call the program with optimas_jax.evaluate, optimize or load, and start threads with "
            "asyncio.to_thread"
        )

    def _scope(self) -> Scope:
        scope = current_scope()
        if scope is None:
            raise ProgramError(self._where())
        if self.name not in scope.recorder.components:
            raise scope.fail(
                ProgramError(
                    f"the program calls the component {self.name or self.description!r}, which it does not declare; it "
                    f"has {', '.join(scope.recorder.components)}: name the others in program(components=[...])"
                )
            )
        return scope


def _declaring_module() -> str:
    """Name of the module outside of this package whose code runs."""
    package = __name__.partition(".")[0]
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == package:
        frame = frame.f_back
    return frame.f_globals.get("__name__", "")
