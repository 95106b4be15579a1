"""Reads recorded calls of agents (``llm.agent``), whose inputs are whole conversations."""

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
    """Whether a call with a model's name belongs to an agent: the agent sends this name, and if its route has a prefix,
    the system message begins with it. Agents that only headers distinguish cannot be recognised in recorded
    messages."""
    route = component.route
    if route is None or route.model != model or route.headers:
        return False
    return not route.prefix or call.instruction.startswith(route.prefix)


def conversation_of(turns: Sequence[Turn]) -> Mapping[str, Any]:
    """Messages as the inputs of an agent. Calls of tools are named by their order, and results of tools are assigned in
    order to the calls before them."""
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
            open_calls = [f"call_{number + index}" for index in range(1, len(calls) + 1)]
            number += len(calls)
            turn["calls"] = [{"id": name, **call} for name, call in zip(open_calls, calls, strict=True)]
        messages.append(turn)
    return freeze({"messages": messages})


def reply_of(answer: str) -> Mapping[str, Any]:
    """A recorded answer as the outputs of an agent, without the names of its calls, which ``with_ids`` adds."""
    text, calls = _reply(answer)
    return freeze({"text": text, "calls": calls, "ids": [], "finish": "tool_calls" if calls else "stop"})


def with_ids(outputs: Mapping[str, Any], inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Outputs of an agent, with the names of its calls after these inputs added; other outputs unchanged."""
    if not {"text", "calls", "ids"} <= set(outputs):
        return outputs
    return freeze({**outputs, "ids": call_ids(inputs, outputs["calls"])})


def _reply(text: str) -> tuple[str, Sequence[Mapping[str, Any]]]:
    """The text and the calls of a turn that ``traces.openai`` wrote."""
    data = loose_json(text) if text.startswith('{"text"') else None
    if isinstance(data, Mapping) and set(data) == {"text", "calls"} and isinstance(data["calls"], list):
        return str(data["text"]), data["calls"]
    return text, ()


def same_conversation(recorded: Sequence[Mapping[str, Any]], given: Any) -> bool:
    """Whether two conversations have the same turns, whatever their calls are named."""

    def plain(turn: Mapping[str, Any]) -> tuple[Any, ...]:
        calls = [(call["name"], call["arguments"]) for call in turn.get("calls", ())]
        return turn["role"], squeezed(str(turn["content"])), freeze(calls)

    if not isinstance(given, list | tuple) or len(given) != len(recorded):
        return False
    return all(plain(turn) == plain(other) for turn, other in zip(recorded, given, strict=True))
