"""Recorded calls of agents (``llm.agent``), whose inputs are whole conversations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optimas_jax.core.component import Component
from optimas_jax.core.types import freeze
from optimas_jax.llm.agent import AgentCall, call_ids
from optimas_jax.llm.forms.loose import loose_json
from optimas_jax.traces.records import ASSISTANT, TOOL, Recorded, Turn


def squeezed(text: str) -> str:
    """The text with single spaces."""
    return " ".join(text.split())


def is_agent(component: Component) -> bool:
    """Whether a component is an agent of a framework."""
    return isinstance(getattr(component.run, "__self__", None), AgentCall)


def is_sent_to(call: Recorded, component: Component, model: str) -> bool:
    """Whether a call with a model's name is of an agent: by the name that it sends, and where several send that, by the
    beginning of its system message. What headers tell apart cannot be told from messages."""
    route = component.route
    if route is None or route.model != model or route.headers:
        return False
    return not route.prefix or call.instruction.startswith(route.prefix)


def conversation_of(turns: Sequence[Turn]) -> Mapping[str, Any]:
    """Messages as the inputs of an agent. Calls have names by their order, and results of tools are those of the calls
    before them, in their order."""
    messages: list[dict[str, Any]] = []
    open_calls: list[str] = []
    number = 0
    for role, text in turns:
        if role == TOOL:
            messages.append({"role": role, "content": text, "call_id": open_calls.pop(0) if open_calls else ""})
            continue
        content, calls = _reply(text) if role == ASSISTANT else (text, ())
        turn: dict[str, Any] = {"role": role, "content": content}
        if calls:
            open_calls = [f"call_{number + place}" for place in range(1, len(calls) + 1)]
            number += len(calls)
            turn["calls"] = [{"id": name, **call} for name, call in zip(open_calls, calls, strict=True)]
        messages.append(turn)
    return freeze({"messages": messages})


def reply_of(answer: str) -> Mapping[str, Any]:
    """The outputs of an agent that a recorded answer is, but for the names of its calls (``with_ids``)."""
    text, calls = _reply(answer)
    return freeze({"text": text, "calls": calls, "ids": [], "finish": "tool_calls" if calls else "stop"})


def with_ids(outputs: Mapping[str, Any], inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Outputs of an agent with the names that its calls have after these inputs; other outputs as they are."""
    if not {"text", "calls", "ids"} <= set(outputs):
        return outputs
    return freeze({**outputs, "ids": call_ids(inputs, outputs["calls"])})


def _reply(text: str) -> tuple[str, Sequence[Mapping[str, Any]]]:
    """The text and the calls of a turn, as ``traces.openai`` writes it."""
    data = loose_json(text) if text.startswith('{"text"') else None
    if isinstance(data, Mapping) and set(data) == {"text", "calls"} and isinstance(data["calls"], list):
        return str(data["text"]), data["calls"]
    return text, ()


def same_conversation(recorded: Sequence[Mapping[str, Any]], given: Any) -> bool:
    """Whether two conversations have the same turns, whatever their calls are named."""

    def plain(turn: Mapping[str, Any]) -> tuple[Any, ...]:
        asked = [(one["name"], one["arguments"]) for one in turn.get("calls", ())]
        return turn["role"], squeezed(str(turn["content"])), freeze(asked)

    if not isinstance(given, list | tuple) or len(given) != len(recorded):
        return False
    return all(plain(one) == plain(other) for one, other in zip(recorded, given, strict=True))
