"""Saved programs: a configuration from a run's folder, put into the program that it belongs to."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from optimas_jax.core.component import ComponentFailure
from optimas_jax.core.running import event_loop
from optimas_jax.core.system import System
from optimas_jax.core.text.frames import without_our_frames
from optimas_jax.core.types import Example, Outcome, Trace, freeze, thaw
from optimas_jax.core.values import Configuration
from optimas_jax.llm.component import LanguageModel
from optimas_jax.programs.plain import from_fields
from optimas_jax.programs.program import OUTPUT, Program
from optimas_jax.saved.folder import Saved, read_folder
from optimas_jax.saved.models import completer_of, make_engines
from optimas_jax.saved.remote import remote_scorer
from optimas_jax.saved.rewards import scorer_of, with_best_of
from optimas_jax.saved.system import Built, Inputs, build


@dataclasses.dataclass(frozen=True)
class Optimized:
    """A program with a saved configuration. A call takes the arguments of the program, and returns what the program
    returns, or the output fields of a graph: on an event loop as an awaitable, elsewhere the result itself.

    Attributes:
      configuration: value of each tuned component.
      system: the program as a system.
      inputs: what it reads.
      name: of the program.
      returns: type of what the program returns, if it is a dataclass or a pydantic model.
      seed: of the run; names all random numbers.

    Raises:
      ComponentFailure: by a call: a component gave no usable answer.
      ValueError: by a call: an argument is unknown or missing.

    Example:
      ```python
      best = oj.load("runs/rag")
      print(best(question="Where is Lima?"), best["answer"].instruction)
      for call in best.trace(question="Where is Lima?").calls:
          print(call.component, call.inputs, call.outputs)
      ```
    """

    configuration: Configuration
    system: System
    inputs: Inputs
    name: str = ""
    returns: Any = None
    seed: int = 0

    def __getitem__(self, name: str) -> Any:
        """The value of a component: ``.instruction`` and ``.demos`` of a prompt, ``["value"]`` of a setting."""
        if name not in self.configuration:
            raise KeyError(f"no component {name!r}; tuned are {', '.join(self.configuration)}")
        return self.configuration[name]

    def __repr__(self) -> str:
        tuned = ", ".join(self.configuration) or "nothing"
        return f"Optimized({self.name} reads {self.inputs}; tuned: {tuned})"

    @without_our_frames
    def __call__(self, *unnamed: Any, **inputs: Any) -> Any:
        """Runs the program on one input; needs neither a metric nor gold fields.

        Raises:
          ValueError: an input is missing, unknown or given without its name.
          ComponentFailure: a component failed, and the program did not catch it.
        """
        self._check_named(unnamed)
        return _here(self._outputs(inputs))

    def trace(self, *unnamed: Any, **inputs: Any) -> Any:
        """As a call; returns the whole record of the run, a ``Trace``: ``outputs``, ``outcome``, and in ``calls`` the
        inputs and outputs of every component."""
        self._check_named(unnamed)
        return _here(self.run_fields(inputs))

    def _check_named(self, unnamed: Sequence[Any]) -> None:
        """Raises ``ValueError`` for inputs without a name."""
        if unnamed:
            raise ValueError(
                f"{self.name} reads {self.inputs}: give inputs by their names, {self.inputs.required[0]}=..."
                if self.inputs.required
                else f"{self.name} reads {self.inputs}: give inputs by their names"
            )

    async def run_fields(self, fields: Mapping[str, Any]) -> Trace:
        """The record of a run on one input; raises as a call."""
        return await self.run(Example("", self.inputs.of(fields, self.name), freeze({}), ""))

    async def run(self, example: Example) -> Trace:
        """The record of a run, on the event loop of the package (``core.running.event_loop``).

        Args:
          example: has the fields that the program reads. Its id and ``seed`` determine the random numbers of the run:
            with the id of an example of the search they are the same as in the search.
        """
        system = self.system
        if system.program is not None:  # which may be called without some of its arguments
            read = tuple(example.inputs) if self.inputs.others else self.inputs.columns(example.inputs, self.name)
            system = dataclasses.replace(system, input_fields=read)
        return await system.run(self.configuration, example, self.seed)

    def result(self, trace: Trace) -> Any:
        """What the program returned in a run.

        Raises:
          ComponentFailure: it failed.
        """
        if trace.outcome is not Outcome.OK:
            raise ComponentFailure(trace.outcome, failure_of(trace))
        outputs = thaw(trace.outputs)
        return outputs if self.system.program is None else from_fields(OUTPUT, outputs, self.returns)

    async def _outputs(self, fields: Mapping[str, Any]) -> Any:
        return self.result(await self.run_fields(fields))


def plain_outputs(trace: Trace) -> Any:
    """What the program returned in a run, as JSON data; None if it failed."""
    return from_fields(OUTPUT, thaw(trace.outputs)) if trace.outcome is Outcome.OK else None


def failure_of(trace: Trace) -> str:
    """Why a run failed: the detail of the first failed call; "" without any."""
    return next((call.detail for call in trace.calls if call.outcome is not Outcome.OK), "")


def load(
    folder: str | Path,
    program: Program | System | Callable[..., Any] | None = None,
    *,
    model: str | LanguageModel | None = None,
    best_of: int | Mapping[str, int] = 0,
    reward: str = "",
) -> Optimized:
    """Loads a program with the configuration of a ``best/`` folder, or of the ``best/`` in a run folder.

    Args:
      program: the program that was optimised; its components are found by their names. By default the run's own: its
        benchmark, or the function of a module file that was given to ``optimize``.
      model: in place of the model of the run.
      best_of: N, 2 or more: the last component with a prompt gives its own output and N - 1 hotter samples, and its
        local reward keeps one of them. For other components: ``{"answer": 8}``.
      reward: address of a server that computes local rewards (``launch/serve.py --reward``); by default this process
        loads the reward model.

    Warns:
      UserWarning: the program was edited since its run, or its run ended without results.

    Raises:
      FolderError: the folder holds no configuration.
      ValueError: a value of the configuration has no component in the program; the program cannot be imported; or there
        is no local reward for ``best_of``.

    Example:
      ```python
      best = oj.load("runs/rag")
      best(question="Where is Lima?")
      ```
    """
    from optimas_jax.report.notebook import keep_libraries_quiet

    keep_libraries_quiet()
    saved = read_folder(folder)
    built = build(saved, program, model)
    if (stopped := saved.stopped) is not None:
        warnings.warn(f"{saved.name} is of a run without results ({stopped}): its values so far", stacklevel=2)
    if built.edited:
        warnings.warn(f"{saved.name} was found before {', '.join(built.edited)} changed", stacklevel=2)
    return assemble(saved, built, model=model, best_of=best_of, reward=reward)


def assemble(
    saved: Saved,
    built: Built,
    configuration: Configuration | None = None,
    *,
    model: str | LanguageModel | None = None,
    best_of: int | Mapping[str, int] = 0,
    reward: str = "",
) -> Optimized:
    """Gives a program the models that answer and, where a value chooses among outputs, local rewards.

    Args:
      configuration: in place of the saved one.
      model, best_of, reward: as in ``load``.
    """
    configuration = configuration or saved.configuration
    configuration = with_best_of(saved, built.system, configuration, best_of, served=bool(reward))
    engines = make_engines()
    completer = completer_of(built.name, saved.language_model(model), saved.settings, saved.folder, engines)
    scorer = remote_scorer(reward) if reward else scorer_of(saved, built.system, configuration, engines)
    system = dataclasses.replace(built.system, completer=completer, scorer=scorer)
    return Optimized(configuration, system, built.inputs, built.name, built.returns, saved.seed)


def _here(run: Coroutine[Any, Any, Any]) -> Any:
    """Runs a coroutine on the event loop of the package, on which the clients of the program live. Returns an awaitable
    on an event loop, elsewhere the result."""
    return event_loop.run_beside(run) if event_loop.running() else event_loop.run(run)
