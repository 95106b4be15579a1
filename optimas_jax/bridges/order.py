"""Order of calls from another process: which answers a conversation was made from.

A call that arrives later need not depend on the earlier ones: agents may run side by side, and the faster one comes
first. A call follows the call that it continues, and the calls whose answers are in its new turns. A call that begins a
conversation also follows all conversations that have ended.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from optimas_jax.core.types import Call, Outcome


def preceding(inputs: Mapping[str, Any], answered: Sequence[Call]) -> list[bool]:
    """For each answered call, whether the call with these inputs follows it."""
    messages = inputs["messages"]
    continued = [_continues(messages, call) for call in answered]
    answer_indices = [index for index, turn in enumerate(messages) if turn["role"] == "assistant"]
    new_turns = messages[answer_indices[-1] + 1 :] if any(continued) else messages
    text = "\n".join(turn["content"] for turn in new_turns)
    begins = not any(continued)
    return [
        before or (begins and _has_ended(call)) or any(word in text for word in _words(call))
        for call, before in zip(answered, continued, strict=True)
    ]


def _continues(messages: Sequence[Mapping[str, Any]], call: Call) -> bool:
    """Whether a conversation continues the conversation of a call, with its answer as the next turn."""
    before, length = call.inputs["messages"], len(call.inputs["messages"])
    if len(messages) <= length or messages[length]["role"] != "assistant" or messages[:length] != before:
        return False
    calls = [(tool_call["name"], tool_call["arguments"]) for tool_call in messages[length].get("calls", ())]
    if calls != [(tool_call["name"], tool_call["arguments"]) for tool_call in call.outputs.get("calls", ())]:
        return False
    return bool(calls) or messages[length]["content"].strip() == call.outputs.get("text", "").strip()


def _has_ended(call: Call) -> bool:
    return call.outcome is not Outcome.OK or not call.outputs.get("calls")


def _words(call: Call) -> Iterator[str]:
    """Texts that show that an answer was used in another text: its own text, and the arguments of its calls."""
    yield from filter(None, [call.outputs.get("text", "").strip()])
    for tool_call in call.outputs.get("calls", ()):
        yield from _leaves(tool_call["arguments"])


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, str) and value.strip():
        yield value.strip()
