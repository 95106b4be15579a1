"""Caps on prompts: the length of a component's requests under a value, before any is sent."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from optimas_jax.core.component import ComponentBug, ComponentFailure
from optimas_jax.core.objective import Objective
from optimas_jax.core.running.execution import gather
from optimas_jax.core.schema import ConfigError
from optimas_jax.core.types import Call, Example, Outcome, digest, freeze, thaw
from optimas_jax.core.values import Prompt, PromptSpace, Value, plain_values
from optimas_jax.llm.base import CompletionRequest, Message
from optimas_jax.llm.render import render_demos, render_fields
from optimas_jax.loop.context import Host, Run
from optimas_jax.loop.objective import prompt_size
from optimas_jax.loop.state import State

_LONGEST = 16  # number of longest inputs, by characters, on which requests are measured

Inputs = Sequence[tuple[Example, Mapping[str, Any]]]  # inputs of a component, each with its example


class _Captured:
    """A completer that answers nothing, and keeps the requests."""

    def __init__(self) -> None:
        self.requests: list[CompletionRequest] = []

    async def complete(self, request: CompletionRequest) -> NoReturn:
        self.requests.append(request)
        raise ComponentFailure(Outcome.OVER_BUDGET)

    async def execute(self, request: Any) -> NoReturn:
        raise ComponentFailure(Outcome.OVER_BUDGET)

    async def call(self, request: Any) -> NoReturn:
        raise ComponentFailure(Outcome.OVER_BUDGET)


def longest_request(host: Host, name: str, value: Value, inputs: Inputs) -> int:
    """Tokens of the longest prompt of a component with a value; 0 without inputs. Nothing is sent.

    Args:
      inputs: inputs of the component.
    """
    ordered = sorted(inputs, key=lambda pair: -len(str(thaw(pair[1]))))[:_LONGEST]
    if not host.system.by_name[name].metered:  # a function of the user's, which would ask its model
        requests = [_written(plain, fields) for plain in plain_values(value) for _, fields in ordered]
    else:
        requests = _captured(host, name, value, ordered)
    return max((prompt_size(host.completer, request) for request in requests), default=0)


def _captured(host: Host, name: str, value: Value, inputs: Inputs) -> list[CompletionRequest]:
    """The first request of each call of a component."""
    captured = _Captured()
    system = dataclasses.replace(host.system.using(captured), meter=None, watch=None)

    async def run(example: Example, fields: Mapping[str, Any]) -> None:
        with contextlib.suppress(ComponentBug):
            await system.run_component(Call(name, fields, {}), value, example, host.seed)

    calls = [lambda pair=pair: run(*pair) for pair in inputs]
    gather(calls, concurrency=len(calls) or 1)
    return captured.requests


def _written(value: Value, fields: Mapping[str, Any]) -> CompletionRequest:
    """A request with the text that a user's function would send: its prompt and its fields."""
    text = render_demos(value.instruction, value.demos) if isinstance(value, Prompt) else ""
    return CompletionRequest("", (Message("text", f"{text}\n{render_fields(fields, list(fields))}"),), 0)


def known_inputs(host: Host, state: State, name: str) -> Inputs:
    """Known inputs of a component: of its calls under the configuration in use, and, if it reads only fields of
    examples, of all examples."""
    examples = {example.id: example for split in host.splits.values() for example in split}
    traces = [*state.val_traces, *state.train_traces.values()]
    calls = [(examples[trace.example_id], call.inputs) for trace in traces for call in trace.calls_of(name)]
    unique = {digest(fields): (example, fields) for example, fields in [*calls, *_of_examples(host, name)]}
    return list(unique.values())


def _of_examples(host: Host, name: str) -> Inputs:
    fields = host.system.by_name[name].inputs
    if host.system.program is not None or not fields or not set(fields) <= set(host.system.input_fields):
        return []
    examples = [example for split in ("train", "val") for example in host.splits.get(split, ())]
    return [(example, freeze({field: example.inputs[field] for field in fields})) for example in examples]


def above_cap(host: Host, name: str, value: Value, inputs: Callable[[], Inputs]) -> str:
    """How far the prompt of a value is above its component's cap; "" where it is not.

    Args:
      inputs: returns the known inputs of the component.
    """
    objective = host.system.objective
    cap = 0 if objective is None else objective.cap(name)
    if not cap or not isinstance(host.system.by_name[name].space, PromptSpace):
        return ""
    size = longest_request(host, name, value, inputs())
    return f"its prompt has up to {size:,} tokens, and its cap is {cap:,}" if size > cap else ""


def within_caps(run: Run) -> Run:
    """Checks the default values of components whose inputs are known, and returns the run.

    Raises:
      ConfigError: a prompt is above the cap of its component.
    """
    host, default = run.host, run.host.system.default_configuration()
    objective = host.system.objective or Objective()
    for name in host.system.by_name:
        cap, inputs = objective.cap(name), _of_examples(host, name)
        if cap and name in default and inputs and (size := longest_request(host, name, default[name], inputs)) > cap:
            raise ConfigError(
                f"the prompt of {name} has up to {size:,} tokens before anything is tuned, and its cap is {cap:,}: "
                f"raise config.optimize.objective.max_prompt_tokens, or prompt_tokens_of to {name}=TOKENS"
            )
    return run
