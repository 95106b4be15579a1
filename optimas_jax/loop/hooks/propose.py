"""Own proposers beside the optimisers, or instead of them."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optimas_jax.core.running import event_loop
from optimas_jax.core.text.json_text import shown
from optimas_jax.core.types import Outcome, derive_seed, digest, thaw
from optimas_jax.core.values import (
    Choice,
    Grid,
    Hyperparameters,
    Models,
    Prompt,
    PromptSpace,
    Space,
    Value,
    other_values,
)
from optimas_jax.llm.base import CompletionRequest, Message
from optimas_jax.llm.component import LanguageModel
from optimas_jax.llm.tapes.taped import TapedCompleter
from optimas_jax.loop.context import Host
from optimas_jax.loop.folder.proposals import Drop
from optimas_jax.loop.hooks.calls import HookBug, call, returned
from optimas_jax.loop.state import Runs, State
from optimas_jax.search.hooks import Earlier, ProposeTask, Reached, title
from optimas_jax.search.optimisers.registry import OWN

_TEMPERATURE = 0.7  # the same as in the shipped optimisers
_USABLE = (Outcome.OK, Outcome.TRUNCATED)


@dataclasses.dataclass
class Asker:
    """``ProposeTask.complete``: asks the run's proposer model through the tape and the ledger.

    Attributes:
      completer, model: completer and model of the requests.
      seed: seed of the answers.
      asked: number of requests so far by text.
    """

    completer: TapedCompleter
    model: LanguageModel
    seed: int
    asked: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def __call__(self, text: str, temperature: float = _TEMPERATURE) -> Any:
        """The answer, or "" for a failed request; on an event loop an awaitable that returns it.

        Raises:
          TypeError: ``text`` is no text.
          OutOfBudget: the budget does not allow it.
        """
        if not isinstance(text, str):
            raise TypeError(f"complete({shown(text)}): expected a text")
        index, self.asked[text] = self.asked[text], self.asked[text] + 1
        request = CompletionRequest(
            model=self.model.model,
            messages=(Message("text" if self.model.style == "text" else "user", text),),
            max_tokens=self.model.max_tokens,
            temperature=temperature,
            stop=("\n\n",) if self.model.style == "text" else (),
            seed=derive_seed(self.seed, "own", digest(text), index),
            role="proposer",
        )
        answer = event_loop.run_beside(self._answer(request))
        return answer if event_loop.running() is not None else event_loop.run(answer)

    async def _answer(self, request: CompletionRequest) -> str:
        completion = await self.completer.complete(request)
        return completion.text if completion.outcome in _USABLE else ""


def own_values(
    host: Host,
    model: LanguageModel,
    state: State,
    name: str,
    runs: Runs,
    current: Value,
    names: Sequence[str],
    number: int,
    seed: int,
    rejected: list[Drop],
) -> list[tuple[str, Value]]:
    """Values from own proposers, as (kind, value). If one raises an exception, only its proposals are missing, and a
    warning is shown. Texts longer than the space allows are rejected, as from other optimisers.

    Args:
      model: model for the requests of ``complete``.
      runs: training inputs that reach the component, and the runs of the program on them.
      current: the value to improve.
      names: ``own:NAME`` of the proposers; others are left out.
      rejected: list to which rejected values are added.

    Raises:
      HookBug: a proposer did not return a list of values of this space.
    """
    usable: list[tuple[str, Value]] = []
    for kind in (kind for kind in names if kind.startswith(OWN)):
        proposer = kind.removeprefix(OWN)
        what, function = title("proposer", proposer), host.hooks.proposers[proposer]
        own_seed = derive_seed(seed, kind)
        task = _task(host, state, name, runs, current, number, own_seed, Asker(host.completer, model, own_seed))
        try:
            values = call(what, function, task, waiting=host.waiting, watch=host.system.watch)
        except HookBug as error:
            host.progress.line(f"  warning: {error}; {name} is tried without it")
            rejected.append(Drop("own proposer failed", str(error), kind))
            continue
        if not isinstance(values, list | tuple):
            raise returned(what, values, f"a list of values of {name!r}")
        space = task.space
        for value in values:
            read = _read(what, name, space, current, value)
            if reason := _too_long(space, read):
                rejected.append(Drop(reason, kind=kind, value=read))
            else:
                usable.append((kind, read))
    return usable


def _task(
    host: Host,
    state: State,
    name: str,
    runs: Runs,
    current: Value,
    number: int,
    seed: int,
    complete: Callable[..., Any],
) -> ProposeTask:
    component = host.system.by_name[name]
    assert component.space is not None
    return ProposeTask(
        component=name,
        description=component.description,
        inputs=component.inputs,
        outputs=component.outputs,
        current=current,
        space=component.space,
        examples=tuple(Reached(example, trace.calls_of(name), trace) for example, trace in runs),
        history=tuple(_history(state, name, component.space, current)),
        iteration=number,
        seed=seed,
        complete=complete,
    )


def _history(state: State, name: str, space: Space, current: Value) -> list[Earlier]:
    if isinstance(space, PromptSpace):
        demos = current.demos if isinstance(current, Prompt) else ()
        tried = state.history.get(name, ())
        return [Earlier(Prompt(entry.instruction, demos), entry.score, entry.refused) for entry in tried]
    if isinstance(space, Grid | Models):
        refused = [value for value in other_values(space, current) if state.is_refused(name, value)]
        return [Earlier(value, None, "refused by the gate") for value in refused]
    return []


def _read(what: str, name: str, space: Space, current: Value, value: Any) -> Value:
    """Reads a value that a proposer returned: a value itself; a text, for an instruction with the demonstrations in use
    or a name; settings by name; or the value of a single setting.

    Raises:
      HookBug: the space does not allow it.
    """
    read = value
    if isinstance(space, PromptSpace) and isinstance(value, str):
        read = Prompt(value, current.demos if isinstance(current, Prompt) else ())
    elif isinstance(space, Models) and isinstance(value, str):
        read = Choice(value)
    elif isinstance(space, Grid) and isinstance(value, Mapping):
        read = Hyperparameters(value)
    elif isinstance(space, Grid) and isinstance(value, str | int | float) and len(space.settings) == 1:
        read = Hyperparameters({next(iter(space.settings)): value})
    try:
        if isinstance(space, PromptSpace) and isinstance(read, Prompt):
            return read  # a text that is too long is rejected later, without an error
        space.check(read)
    except ValueError:
        raise returned(what, value, f"values of {name!r}: {_allowed(space)}") from None
    return _of_the_space(space, read)


def _of_the_space(space: Space, value: Value) -> Value:
    """The value as the space lists it: 1, 1.0 and True are equal here, but not elsewhere."""
    if isinstance(space, Grid) and isinstance(value, Hyperparameters):
        return Hyperparameters({name: _listed(space.settings[name], value[name]) for name in space.settings})
    return value


def _listed(allowed: Sequence[Any], setting: Any) -> Any:
    equal = [listed for listed in allowed if listed == setting]
    return next((listed for listed in equal if type(listed) is type(setting)), equal[0])


def _too_long(space: Space, value: Value) -> str:
    if not isinstance(space, PromptSpace) or not isinstance(value, Prompt):
        return ""
    if not value.instruction.strip():
        return "empty"
    if len(value.instruction) > space.max_instruction_chars:
        return f"longer than {space.max_instruction_chars} characters"
    return f"more than {space.max_demos} demonstrations" if len(value.demos) > space.max_demos else ""


def _allowed(space: Space) -> str:
    match space:
        case PromptSpace():
            return "texts, which become its instruction, or Prompt(instruction, demos)"
        case Models(names):
            return f"names among {', '.join(names)}"
        case Grid(settings):
            return f"settings among {thaw(settings)}"
        case _:
            return "an Adapter"
