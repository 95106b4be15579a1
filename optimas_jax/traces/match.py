"""Matches recorded calls with the components of a system, and reads their fields from messages."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from optimas_jax.core.component import Component
from optimas_jax.core.text.json_text import find_json
from optimas_jax.core.types import freeze
from optimas_jax.core.values import Prompt, Value, plain_values
from optimas_jax.llm.component import ModelCall
from optimas_jax.llm.forms.answers import AnswerError
from optimas_jax.llm.forms.loose import NOTHING, loose_json
from optimas_jax.llm.render import field_label, render_value
from optimas_jax.traces.conversations import (
    conversation_of,
    is_agent,
    is_sent_to,
    reply_of,
    same_conversation,
    squeezed,
)
from optimas_jax.traces.records import USER, Recorded, leaves
from optimas_jax.traces.rows import ANCHOR

_LABEL = re.compile(r"^([A-Za-z][\w \-]{0,60}):(?=\s|$)", re.MULTILINE)
_EMPTY = ("", "none", "n/a", "null", "-", "[]")  # texts that stand for an empty field


@dataclasses.dataclass(frozen=True)
class Matched:
    """A recorded call of a component.

    Attributes:
      call: the recording.
      component: its name.
      inputs, outputs: its fields; None where they cannot be read.
      as_declared: whether the component had its default value, as far as the call shows.
    """

    call: Recorded
    component: str
    inputs: Mapping[str, Any] | None
    outputs: Mapping[str, Any] | None
    as_declared: bool


def match_calls(
    calls: Sequence[Recorded], components: Sequence[Component]
) -> tuple[list[Matched], collections.Counter]:
    """Matches recorded calls with components; returns the matches, and the number of unusable calls by reason."""
    left_out: collections.Counter[str] = collections.Counter()
    by_component: dict[str, list[Recorded]] = {}
    by_call: list[tuple[Recorded, str]] = []
    for call in calls:
        if call.outputs is None and not call.answer.strip():
            left_out["without content"] += 1
        elif name := component_of(call, components):
            by_component.setdefault(name, []).append(call)
            by_call.append((call, name))
        else:
            left_out["of no component"] += 1
    named = {component.name: component for component in components}
    labels = {
        name: _shared_labels([_asked(call, named[name]) for call in of_component])
        for name, of_component in by_component.items()
    }
    matched = []
    for call, name in by_call:
        component = named[name]
        inputs = call.inputs if call.inputs is not None else read_inputs(call, component, labels[name])
        outputs = call.outputs if call.outputs is not None else read_outputs(call.answer, component)
        if outputs is None:
            left_out["with an answer that cannot be read"] += 1
            continue
        as_declared = call.as_declared if call.as_declared is not None else _has_default(call, component)
        matched.append(Matched(call, name, inputs, outputs, as_declared))
    return matched, left_out


def component_of(call: Recorded, components: Sequence[Component]) -> str:
    """Name of the component of a call: by a name in the call, else by its system message; "" if none or several
    match."""
    for name in call.names:
        matches = [component.name for component in components if component.name == name]
        matches = matches or [component.name for component in components if _plain(component.name) == _plain(name)]
        matches = matches or [component.name for component in components if is_sent_to(call, component, name)]
        if len(matches) == 1:
            return matches[0]
    beginning = [component for component in components if _begins_with_default(call, component)]
    by_length = [(len(_instruction(component.default)), component.name) for component in beginning]
    longest = max(by_length, default=(0, ""))
    return longest[1] if [length for length, _ in by_length].count(longest[0]) == 1 else ""


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "", name.lower())


def _instruction(value: Value | None) -> str:
    prompt = None if value is None else plain_values(value)[0]
    return prompt.instruction.strip() if isinstance(prompt, Prompt) else ""


def _begins_with_default(call: Recorded, component: Component) -> bool:
    instruction = _instruction(component.default)
    text = (call.instruction or _first_asked(call)).strip()
    if is_agent(component) and not call.instruction:
        return False  # its messages are inputs
    rest = text[len(instruction) :]
    return bool(instruction) and text.startswith(instruction) and (not rest or rest[0].isspace())


def _first_asked(call: Recorded) -> str:
    return next((text for role, text in call.turns if role == USER), "")


def _has_default(call: Recorded, component: Component) -> bool:
    """Whether a call shows the component's default value, or no other value. Below the instruction there may be more,
    such as demonstrations, but not in its last line."""
    instruction = _instruction(component.default)
    if not call.instruction or not instruction:
        return True
    rest = call.instruction.strip().removeprefix(instruction)
    return _begins_with_default(call, component) and not "".join(rest.splitlines()[:1]).strip()


def _asked(call: Recorded, component: Component) -> str:
    """The text with the fields of a call: its last message, without an instruction at its beginning and without the
    label of the answer at its end."""
    text, instruction = call.asked.strip(), _instruction(component.default)
    if not call.instruction and instruction and text.startswith(instruction):
        text = text[len(instruction) :].strip()
        names = [field_label(name) for name in component.outputs]
        last = text.rpartition("\n")[2].strip()
        if last.endswith(":") and (not names or last[:-1] in names):  # a text that the model continues
            text = text.rpartition("\n")[0]
            first = component.inputs[0] if component.inputs else ""
            begin = text.rfind(f"\n\n{field_label(first)}: ") if first else -1
            text = text[begin:].strip() if begin >= 0 else text  # after the demonstrations
    return text


def read_inputs(call: Recorded, component: Component, labels: Sequence[str] = ()) -> Mapping[str, Any] | None:
    """Fields of the last message: a JSON object, ``Label: value`` lines, or the whole text of a component with one
    field; None where there are none.

    Args:
      labels: labels at the beginning of a line in every call of the component.
    """
    if is_agent(component):
        return conversation_of(call.turns) if call.turns else None
    text, names = _asked(call, component), component.inputs
    if not text:
        return None
    data = loose_json(text)
    if isinstance(data, Mapping) and data and (not names or set(data) <= set(names)):
        return freeze({name: data.get(name, "") for name in names or data})
    if names and (fields := read_lines(text, names)) is not None:
        return freeze(fields)
    if labels and (fields := read_lines(text, labels)) is not None:
        return freeze(_renamed(fields, names))
    if len(names) == 1:
        return freeze({names[0]: text})
    return None


def read_lines(text: str, names: Sequence[str]) -> dict[str, str] | None:
    """The values of ``Label: value`` lines, each of one line or several; None if a label is missing. Labels are
    searched in the order of the names, then in any order."""
    spans_of: dict[str, list[tuple[int, int]]] = {name: [] for name in names}
    by_label = {_plain(name): name for name in names}
    for label in _LABEL.finditer(text):
        if name := by_label.get(_plain(label[1])):
            spans_of[name].append(label.span())
    if not all(spans_of.values()):
        return None
    chosen, position = dict[str, tuple[int, int]](), 0
    for name in names:
        after = next((span for span in spans_of[name] if span[0] >= position), None)
        if after is None:
            chosen = {name: spans[0] for name, spans in spans_of.items()}
            break
        chosen[name], position = after, after[1]
    ordered = sorted(chosen, key=lambda name: chosen[name])
    if chosen[ordered[0]][0] > 0 and text[: chosen[ordered[0]][0]].strip():
        return None  # something stands before the first field
    ends = [*(chosen[name][0] for name in ordered[1:]), len(text)]
    read = {name: text[chosen[name][1] : end].strip() for name, end in zip(ordered, ends, strict=True)}
    return {name: read[name] for name in names}


def _shared_labels(texts: Sequence[str]) -> list[str]:
    """Labels at the beginning of a line in all texts, in the order of the first one."""
    texts = [text for text in texts if text]
    if not texts:
        return []
    first = dict.fromkeys(label[1] for label in _LABEL.finditer(texts[0]))
    return [label for label in first if all(re.search(rf"^{re.escape(label)}:", text, re.MULTILINE) for text in texts)]


def _renamed(fields: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    """Fields by the names of the component's inputs. If a single name and a single label are left over, they belong
    together."""
    known = {_plain(name): name for name in names}
    renamed = {label: known.get(_plain(label), "") for label in fields}
    free_names = [name for name in names if name not in renamed.values()]
    free_labels = [label for label, name in renamed.items() if not name]
    if len(free_names) == len(free_labels) == 1:
        renamed[free_labels[0]] = free_names[0]
    return {name or re.sub(r"\W+", "_", label.strip().lower()): fields[label] for label, name in renamed.items()}


def read_outputs(answer: str, component: Component) -> Mapping[str, Any] | None:
    """Fields of an answer, as the component's own prompt reads them; None where it cannot be read."""
    asking = getattr(component.run, "__self__", None)
    reader = asking.form.reader if isinstance(asking, ModelCall) else None
    if reader is not None:
        try:
            return freeze(reader.read(answer))
        except AnswerError:
            return None
    names, text = component.outputs, answer.strip()
    if is_agent(component):
        return reply_of(text)
    if len(names) < 2:
        return freeze({names[0] if names else component.name: text})
    objects = [value for value in find_json(text) if isinstance(value, Mapping)]
    return next((freeze({name: value[name] for name in names}) for value in objects if set(names) <= set(value)), None)


def agrees(recorded: Matched, inputs: Mapping[str, Any]) -> bool:
    """Whether a recorded call read these inputs: it has the same fields, or its messages have all their texts, and no
    text for an empty field."""
    if recorded.call.inputs is not None:
        return recorded.call.inputs == freeze(inputs)
    if recorded.inputs is not None and set(recorded.inputs) == {"messages"} and "messages" in inputs:
        return same_conversation(recorded.inputs["messages"], inputs["messages"])
    if recorded.inputs is not None and set(recorded.inputs) == set(inputs):
        same = {name: render_value(value) for name, value in inputs.items()}
        if all(render_value(recorded.inputs[name]) == text for name, text in same.items()):
            return True
    text = squeezed(recorded.call.asked)
    if not text or not all(squeezed(leaf) in text for leaf in leaves(inputs)):
        return False
    given = recorded.inputs or {}
    empty = [name for name, value in inputs.items() if not leaves(value) and not isinstance(value, bool)]
    return all(str(given.get(name, "")).strip().lower() in _EMPTY for name in empty)


def as_seen(outputs: Mapping[str, Any], seen: Mapping[str, Any]) -> Mapping[str, Any]:
    """Outputs in the types that a component was observed to return, because an answer of a model may have texts where
    code returns numbers, and numbers where code returns texts."""
    return freeze({name: _like(value, seen.get(name)) for name, value in outputs.items()})


def _like(value: Any, seen: Any) -> Any:
    if isinstance(seen, str) and not isinstance(value, str):
        return "" if value is None else render_value(value)
    if isinstance(seen, bool | int | float) and isinstance(value, str):
        data = loose_json(f"[{value.strip()}]")
        return data[0] if data is not NOTHING and isinstance(data, list) and len(data) == 1 else value
    return value


def texts_of(calls: Iterable[Matched]) -> list[str]:
    """All texts that some calls read, once each: those of their messages, long ones in JSON there (short ones are in
    passages by chance), and values of their fields."""
    calls = list(calls)
    texts = dict.fromkeys(text for match in calls for text in match.call.texts)
    inside = (leaf for text in texts for data in find_json(text) for leaf in leaves(data) if len(leaf) >= ANCHOR)
    values = (value for match in calls for value in (match.inputs or {}).values())
    fields = (str(value) for value in values if isinstance(value, str | int | float))
    return list(dict.fromkeys([*texts, *inside, *fields]))
