"""Reads prompts that were written elsewhere, as the start of a search: the ``.json`` of DSPy's ``module.save``, or
instructions by component."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optimas_jax.core.component import Component
from optimas_jax.core.text.json_text import JsonError, parse_json, shown
from optimas_jax.core.types import freeze
from optimas_jax.core.values import Demo, Prompt, PromptSpace
from optimas_jax.llm.component import ModelCall
from optimas_jax.traces.records import TraceError

# Fields of DSPy's demonstrations that are left out.
_ABOUT = ("augmented", "dspy_uuid", "dspy_split", "rationale", "reasoning", "completions")


@dataclasses.dataclass(frozen=True)
class Written:
    """Prompts that were written elsewhere, by the names that they have there.

    Attributes:
      where: where they come from, for messages.
      prompts: by name, the instruction (None keeps the component's own) and demonstrations, each as one mapping of
        inputs and outputs.
    """

    where: str
    prompts: Mapping[str, tuple[str | None, tuple[Mapping[str, Any], ...]]]


def is_written(start: str) -> bool:
    """Whether a start names prompts, not the folder of a run: a ``.json`` file, or an object of texts."""
    return start.lstrip().startswith("{") or start.endswith((".json", ".pkl"))


def read_written(start: str) -> Written:
    """Prompts of a file, or of an object in JSON.

    Raises:
      TraceError: it is no JSON, is pickled, or holds no prompts; the message has the way out.
    """
    inline = start.lstrip().startswith("{")
    where = "start" if inline else start
    if start.endswith(".pkl"):
        raise TraceError(f"{start} is pickled, which is not read: save the module as .json (module.save)")
    try:
        data = parse_json(start if inline else Path(start).read_bytes().removeprefix(b"\xef\xbb\xbf"), mend=True)
    except (OSError, JsonError) as error:
        raise TraceError(f"{where} cannot be read ({error}): give a run folder, a .json of DSPy, or texts") from error
    if not isinstance(data, Mapping) or not data:
        raise TraceError(f"{where} is {shown(data)}, expected an object of prompts by name")
    prompts = {name: _prompt(state, f"{where}: {name}") for name, state in data.items() if name != "metadata"}
    if not prompts:
        raise TraceError(f"{where} holds no prompts, only metadata")
    return Written(where, prompts)


def _prompt(state: Any, where: str) -> tuple[str | None, tuple[Mapping[str, Any], ...]]:
    if isinstance(state, str):
        return state, ()
    if not isinstance(state, Mapping):
        raise TraceError(f"{where} is {shown(state)}, expected a text, or a predictor's state")
    signature = state.get("extended_signature") or state.get("signature")  # the former: of ChainOfThought before 2.5
    instruction = signature.get("instructions") if isinstance(signature, Mapping) else state.get("instruction")
    demos = state.get("demos", [])
    if not isinstance(instruction, str | None) or not isinstance(demos, list):
        raise TraceError(
            f"{where}: instructions are {shown(instruction)}, demos {shown(demos)}: expected text and list"
        )
    if instruction is None and not demos:
        raise TraceError(f"{where} has neither instructions nor demos; it has {', '.join(map(str, state))}")
    if wrong := [demo for demo in demos if not isinstance(demo, Mapping)]:
        raise TraceError(f"{where}: a demonstration is {shown(wrong[0])}, expected an object of fields")
    return instruction, tuple(freeze(demo) for demo in demos)


def prompts_for(written: Written, components: Sequence[Component], names: Mapping[str, str]) -> dict[str, Prompt]:
    """Assigns prompts to components: by ``names``, by an equal name, or by the name without the ending of a DSPy
    predictor (``answer.predict``).

    Args:
      names: name of the component, by name of the prompt.

    Raises:
      TraceError: a name belongs to no component with a prompt, or two names to one component; the message has both
        lists.
    """
    tuned = {component.name: component for component in components if isinstance(component.space, PromptSpace)}
    component_of: dict[str, str] = {}
    for name in written.prompts:
        stem = name.removesuffix(".predict").removeprefix("self.")
        component_of[name] = names.get(name) or (name if name in tuned else stem)
    lost = [name for name, component in component_of.items() if component not in tuned]
    twice = [component for component in component_of.values() if list(component_of.values()).count(component) > 1]
    unknown = [name for name in names if name not in written.prompts]
    if lost or twice or unknown:
        what = f"{', '.join(lost)} of no component" if lost else ""
        what = what or (f"{twice[0]} named twice" if twice else f"{', '.join(unknown)} not among them")
        raise TraceError(
            f"{written.where} has prompts of {', '.join(written.prompts)}, and the program has prompts called "
            f"{', '.join(tuned) or 'nothing'} ({what}): say which is which by config.optimize.start_names = NAME="
            "COMPONENT,..."
        )
    return {component: _for_component(written, name, tuned[component]) for name, component in component_of.items()}


def _for_component(written: Written, name: str, component: Component) -> Prompt:
    instruction, demos = written.prompts[name]
    default, space = component.default, component.space
    assert isinstance(space, PromptSpace)
    default_instruction = default.instruction if isinstance(default, Prompt) else ""
    shown_demos = [demo for fields in demos if (demo := _demo(fields, component)) is not None]
    return Prompt(default_instruction if instruction is None else instruction, tuple(shown_demos[: space.max_demos]))


def _demo(fields: Mapping[str, Any], component: Component) -> Demo | None:
    """Fields of a demonstration as inputs and outputs: by the names of the component's fields if they are known, else
    the last field is the output; None if there is no output."""
    fields = {name: value for name, value in fields.items() if name not in _ABOUT and not name.startswith("dspy_")}
    asking = getattr(component.run, "__self__", None)
    outputs = component.outputs or (asking.output if isinstance(asking, ModelCall) else component.name,)
    if all(name in fields for name in outputs):
        known = {name: fields[name] for name in outputs}
        return Demo({name: value for name, value in fields.items() if name not in outputs}, known)
    rest = [name for name in fields if name not in component.inputs]
    if len(outputs) > 1 or not rest or len(fields) < 2:
        return None
    last = rest[-1]
    output = (
        next(iter(outputs)) if component.outputs or isinstance(asking, ModelCall) else last
    )  # else the user's own message
    return Demo({name: value for name, value in fields.items() if name != last}, {output: fields[last]})


def read_names(text: str) -> dict[str, str]:
    """``NAME=OTHER, ...`` as a mapping; raises ``TraceError`` for another form."""
    names = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, equals, other = (piece.strip() for piece in part.partition("="))
        if not (name and equals and other):
            raise TraceError(f"names are NAME=OTHER, separated by commas, got {part!r}")
        names[name] = other
    return names
