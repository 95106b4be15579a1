"""Templates of the texts that a component's language model and a local reward read. Templates of proposers are in
``search.optimisers.templates``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from optimas_jax.core.values import Demo, Prompt

Turn = tuple[str, str]  # (role, content)
_IMAGE = "[image]"


def field_label(name: str) -> str:
    """search_keywords -> Search keywords."""
    return name.replace("_", " ").capitalize()


def render_fields(fields: Mapping[str, Any], names: Sequence[str]) -> str:
    """One ``Label: value`` line per field, in the order of ``names``; missing fields of a failed component are
    empty."""
    return "\n".join(f"{field_label(name)}: {render_value(fields.get(name, ''))}" for name in names)


def render_value(value: Any) -> str:
    """Text of one field: lists with one item per line, numbers as written, text unchanged, objects as JSON, images as a
    mark."""
    if isinstance(value, str):
        return value.strip()
    if is_image(value):
        return _IMAGE
    if isinstance(value, Mapping):
        return json.dumps(_marked(value), ensure_ascii=False)
    if isinstance(value, Sequence):
        return "\n".join(render_value(item) for item in value)
    return str(value)


def is_image(value: Any) -> bool:
    """Whether a recorded value is an image (``llm.forms.images``)."""
    return isinstance(value, Mapping) and set(value) == {"image_url", "sha256"}


def images_in(value: Any) -> Iterator[str]:
    """URLs of the images in a recorded value, in the order of their marks."""
    if is_image(value):
        yield value["image_url"]
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from images_in(item)


def _marked(value: Any) -> Any:
    """Plain data with marks in the place of images."""
    if is_image(value):
        return _IMAGE
    if isinstance(value, Mapping):
        return {key: _marked(item) for key, item in value.items()}
    return [_marked(item) for item in value] if isinstance(value, list | tuple) else value


def render_chat(prompt: Prompt, inputs: Mapping[str, Any], input_names: Sequence[str], output: str) -> list[Turn]:
    """Messages for a chat model: instruction, demonstrations as earlier turns, then the input.

    The part that all requests of one prompt share comes first, so that engines can reuse its computation.
    """
    turns: list[Turn] = [("system", prompt.instruction)]
    for demo in prompt.demos:
        turns.append(("user", render_fields(demo.inputs, input_names)))
        turns.append(("assistant", render_value(demo.outputs[output])))
    turns.append(("user", render_fields(inputs, input_names)))
    return turns


def render_text(prompt: Prompt, inputs: Mapping[str, Any], input_names: Sequence[str], output: str) -> list[Turn]:
    """One plain text to continue, for small or base models: instruction, then demonstrations and the input as blocks
    of ``Label: value`` lines; the last line ends before its value."""
    blocks = [prompt.instruction]
    for demo in prompt.demos:
        blocks.append(f"{render_fields(demo.inputs, input_names)}\n{render_fields(demo.outputs, [output])}")
    blocks.append(f"{render_fields(inputs, input_names)}\n{field_label(output)}:")
    return [("text", "\n\n".join(blocks))]


def render_demos(instruction: str, demos: Sequence[Demo]) -> str:
    """An instruction with its demonstrations as blocks of ``Label: value`` lines, for a message of the user's own."""
    blocks = [render_fields({**demo.inputs, **demo.outputs}, [*demo.inputs, *demo.outputs]) for demo in demos]
    return "\n\n".join([instruction, *(f"Example:\n{block}" for block in blocks)])


def render_reward_task(description: str) -> str:
    """The beginning of the text that a local reward reads: the component's task."""
    return f"Task: {description}\n"


def render_reward_inputs(inputs: Mapping[str, Any], input_names: Sequence[str]) -> str:
    """The component's input in the text that a local reward reads, between the task and a candidate output."""
    return f"{render_fields(inputs, input_names)}\n"


def render_reward_candidate(outputs: Mapping[str, Any], output_names: Sequence[str]) -> str:
    """A candidate output in the text that a local reward reads."""
    return render_fields(outputs, output_names)
