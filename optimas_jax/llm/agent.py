"""Components that a framework calls: a conversation in, the next turn of the assistant out.

Inputs are the fields of the framework's request, as ``bridges`` reads them: ``messages`` (``role``, ``content``, maybe
``images``, ``calls``, ``call_id`` and ``name``), and, if the request has them, ``tools``, ``tool_choice``,
``response_format`` and ``settings``. Outputs are ``text``, ``calls`` (``name``, ``arguments``), their ``ids``, and
``finish``: ``stop``, ``length`` or ``tool_calls``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from optimas_jax.core.component import ComponentFailure, RunContext
from optimas_jax.core.types import Outcome, digest
from optimas_jax.core.values import Demo, Prompt, Value
from optimas_jax.llm.base import CompletionRequest, Message, Tool, ToolUse
from optimas_jax.llm.component import LanguageModel
from optimas_jax.llm.forms.answers import ask, completed
from optimas_jax.llm.forms.replies import ReplyForm
from optimas_jax.llm.forms.schemas import plain_turns, with_line
from optimas_jax.llm.render import images_in

INPUTS, OUTPUTS = ("messages",), ("text", "calls")  # fields that demonstrations show and local rewards read
_LABELS = {"user": "User", "assistant": "Assistant", "system": "System"}
_LEFT_OUT = "(left out)"  # result of each call that a demonstration ends with


@dataclasses.dataclass(frozen=True)
class AgentCall:
    """The call of a language model behind an agent.

    Attributes:
      language_model: the model that answers, and its sampling.
      stop: texts that end the answer, besides the framework's.
      limited: whether ``language_model.max_tokens`` comes before the framework's limit.
      keep: whether the agent's own system message stands below the instruction; else the instruction replaces it.
    """

    language_model: LanguageModel
    stop: tuple[str, ...] = ()
    limited: bool = False
    keep: bool = False

    def request(self, fields: Mapping[str, Any], value: Value | None, context: RunContext) -> CompletionRequest:
        """The request for one conversation under a value of the component."""
        assert isinstance(value, Prompt)
        model, settings = self.language_model, fields.get("settings", {})
        form, schema = reply_form(fields), fields.get("response_format")
        turns = conversation(fields, value, keep=self.keep)
        stop = [*settings.get("stop", ()), *self.stop]
        if form is None and schema is not None and schema.get("properties"):
            first, rest = (turns[0], turns[1:]) if turns[0].role == "system" else (Message("system", ""), turns)
            turns = [dataclasses.replace(first, content=with_line(first.content, schema).strip()), *rest]
        if model.style == "text":
            turns = [Message("text", as_text(turns, form), tuple(url for turn in turns for url in turn.images))]
            stop += [] if form or schema else [f"\n{_LABELS['user']}:"]
        return CompletionRequest(
            model=model.model,
            messages=tuple(turns),
            max_tokens=model.max_tokens if self.limited else settings.get("max_tokens", model.max_tokens),
            temperature=model.temperature if context.temperature is None else context.temperature,
            top_p=model.top_p,
            stop=tuple(dict.fromkeys(stop)),
            seed=context.seed,
            role=context.component,
            schema=schema if form is None else form.schema,
            tools=tools_of(fields) if model.style == "chat" else (),
            choice=choice_of(fields) if model.style == "chat" else "auto",
            text_schema=None if form is None or model.style == "text" else form.text_schema,
        )

    async def run(self, fields: Mapping[str, Any], value: Value | None, context: RunContext) -> Mapping[str, Any]:
        """The next turn; raises ``ComponentFailure`` if it is empty, cannot be read, or was not answered."""
        request, form = self.request(fields, value, context), reply_form(fields)
        if form is not None:
            reply = await ask(context, request, form)
            one_only = fields.get("settings", {}).get("parallel_tool_calls") is False
            calls = reply["calls"][:1] if one_only else reply["calls"]
            finish = "tool_calls" if calls else "length" if context.cuts else "stop"
            return {"text": reply["text"], "calls": calls, "ids": call_ids(fields, calls), "finish": finish}
        completion = await completed(context, request)
        text = completion.text.strip()
        if not text:
            raise ComponentFailure(Outcome.PARSE_ERROR, "empty answer")
        finish = "length" if completion.outcome is Outcome.TRUNCATED else "stop"
        return {"text": text, "calls": [], "ids": [], "finish": finish}


def tools_of(fields: Mapping[str, Any]) -> tuple[Tool, ...]:
    """The tools that a framework offers."""
    return tuple(Tool(tool["name"], tool["description"], tool["parameters"]) for tool in fields.get("tools", ()))


def choice_of(fields: Mapping[str, Any]) -> str:
    """``auto``, ``none``, ``required`` or the name of a tool."""
    choice = fields.get("tool_choice", "auto")
    return choice["name"] if isinstance(choice, Mapping) else choice


def reply_form(fields: Mapping[str, Any]) -> ReplyForm | None:
    """The reader of replies with calls; None where the model may ask for no tool."""
    tools, choice = tools_of(fields), choice_of(fields)
    return ReplyForm(tools, choice, fields.get("response_format")) if tools and choice != "none" else None


def call_ids(fields: Mapping[str, Any], calls: Sequence[Mapping[str, Any]]) -> list[str]:
    """Ids of the calls of an answer: equal calls after equal conversations have equal ids."""
    return [f"call_{digest(fields.get('messages'), index, call)}" for index, call in enumerate(calls)]


def own_instruction(inputs: Sequence[Mapping[str, Any]]) -> str:
    """The agent's own system message, if all conversations begin with the same one; else ""."""
    system_messages = {_own(fields.get("messages", ()))[0] for fields in inputs}
    return system_messages.pop() if len(system_messages) == 1 else ""


def conversation(fields: Mapping[str, Any], prompt: Prompt, *, keep: bool = False) -> list[Message]:
    """The messages of a conversation, with the instruction and the demonstrations of a prompt.

    Args:
      keep: whether the agent's own system message stands below the instruction.
    """
    own, rest = _own(fields.get("messages", ()))
    parts = [prompt.instruction.strip(), own if keep or not prompt.instruction else ""]
    system = "\n\n".join(filter(None, parts))
    demos = [turn for number, demo in enumerate(prompt.demos, 1) for turn in _shown(demo, f"example{number}-")]
    turns = [message_of(turn) for turn in rest]
    if "messages" not in fields:  # a plan reads made-up fields
        turns = [Message("user", json.dumps(dict(fields), ensure_ascii=False, default=str))]
    return [*([Message("system", system)] if system else []), *demos, *turns]


def _own(messages: Any) -> tuple[str, Sequence[Mapping[str, Any]]]:
    """The system message that a conversation begins with, and the rest of it."""
    if isinstance(messages, str):
        return "", [{"role": "user", "content": messages}]
    if messages and messages[0]["role"] == "system":
        return messages[0]["content"], messages[1:]
    return "", messages


def message_of(turn: Mapping[str, Any], mark: str = "") -> Message:
    """A recorded turn as a message; ``mark``: prefix of the ids of its calls."""
    calls = tuple(ToolUse(mark + call["id"], call["name"], call["arguments"]) for call in turn.get("calls", ()))
    call_id = mark + turn["call_id"] if turn.get("call_id") else ""
    images = tuple(images_in(turn.get("images", ())))
    return Message(turn["role"], turn["content"], images, calls, call_id, turn.get("name", ""))


def _shown(demo: Demo, mark: str) -> list[Message]:
    """A demonstration as turns. APIs want a result after every call: the last calls get a placeholder."""
    _, turns = _own(demo.inputs.get("messages", ()))
    calls = [
        ToolUse(f"{mark}last{number}", call["name"], call["arguments"])
        for number, call in enumerate(demo.outputs.get("calls", ()))
    ]
    answer = Message("assistant", demo.outputs.get("text", ""), calls=tuple(calls))
    results = [Message("tool", _LEFT_OUT, call_id=call.id) for call in calls]
    return [*(message_of(turn, mark) for turn in turns), answer, *results]


def as_text(turns: Sequence[Message], form: ReplyForm | None) -> str:
    """A conversation as one text to continue: the first system message, then a labelled block for each turn."""
    first, *rest = plain_turns(turns)
    if first.role != "system":
        first, rest = Message("system", ""), [first, *rest]
    head = first.content if form is None else with_line(first.content, form.schema)
    blocks = [f"{_LABELS[turn.role]}: {turn.content.strip()}" for turn in rest]
    return "\n\n".join(filter(None, [head.strip(), *blocks, f"{_LABELS['assistant']}:"]))
