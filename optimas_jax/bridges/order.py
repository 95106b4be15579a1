"""Which answers a conversation was made from: what is known of the order of calls that come from another process.

Calls that arrive one after the other need not follow from each other: agents may run side by side, and the faster one
would come first. A call follows the one that it continues, and those whose answers it has in its new turns; one that
begins a conversation also follows all conversations that have ended.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from optimas_jax.core.types import Call, Outcome


def preceding(inputs: Mapping[str, Any], answered: Sequence[Call]) -> list[bool]:
    """Which of the answered calls come before a call."""
    messages = inputs["messages"]
    continued = [_continues(messages, call) for call in answered]
    said = [place for place, turn in enumerate(messages) if turn["role"] == "assistant"]
    new = messages[said[-1] + 1 :] if any(continued) else messages
    text = "\n".join(turn["content"] for turn in new)
    begins = not any(continued)
    return [
        before or (begins and _has_ended(call)) or any(word in text for word in _words(call))
        for call, before in zip(answered, continued, strict=True)
    ]


def _continues(messages: Sequence[Mapping[str, Any]], call: Call) -> bool:
    """Whether a conversation goes on behind the answer of a call."""
    before, length = call.inputs["messages"], len(call.inputs["messages"])
    if len(messages) <= length or messages[length]["role"] != "assistant" or messages[:length] != before:
        return False
    asked = [(one["name"], one["arguments"]) for one in messages[length].get("calls", ())]
    if asked != [(one["name"], one["arguments"]) for one in call.outputs.get("calls", ())]:
        return False
    return bool(asked) or messages[length]["content"].strip() == call.outputs.get("text", "").strip()


def _has_ended(call: Call) -> bool:
    return call.outcome is not Outcome.OK or not call.outputs.get("calls")


def _words(call: Call) -> Iterator[str]:
    """Texts by which an answer is known in what is made from it: its own, and the arguments of its calls."""
    yield from filter(None, [call.outputs.get("text", "").strip()])
    for one in call.outputs.get("calls", ()):
        yield from _leaves(one["arguments"])


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for part in value.values():
            yield from _leaves(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _leaves(part)
    elif isinstance(value, str) and value.strip():
        yield value.strip()
