"""Prompts that were written elsewhere, as a start: the ``.json`` that ``module.save`` of DSPy writes, or instructions
by component."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optimas_jax.core.component import Component
from optimas_jax.core.json_text import JsonError, parse_json, shown
from optimas_jax.core.types import freeze
from optimas_jax.core.values import Demo, Prompt, PromptSpace
from optimas_jax.llm.component import ModelCall
from optimas_jax.traces.records import TraceError

_ABOUT = ("augmented", "dspy_uuid", "dspy_split", "rationale", "reasoning", "completions")  # in demonstrations of DSPy


@dataclasses.dataclass(frozen=True)
class Written:
    """Prompts by the names that they have elsewhere.

    Attributes:
      where: they are from.
      prompts: an instruction, None to keep the component's own, and demonstrations as fields that are inputs and
        outputs in one.
    """

    where: str
    prompts: Mapping[str, tuple[str | None, tuple[Mapping[str, Any], ...]]]


def is_written(start: str) -> bool:
    """Whether a start is no folder of a run, but prompts: a ``.json`` file or an object of texts."""
    return start.lstrip().startswith("{") or start.endswith((".json", ".pkl"))


def read_written(start: str) -> Written:
    """Prompts of a file, or of an object in JSON.

    Raises:
      TraceError: it is no JSON, pickled, or holds no prompts; has the way out.
    """
    inline = start.lstrip().startswith("{")
    where = "start" if inline else start
    if start.endswith(".pkl"):
        raise TraceError(f"{start} is pickled, which is not read: save the module as .json (module.save)")
    try:
        data = parse_json(start if inline else Path(start).read_bytes(), mend=True)
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
    """The prompts of components, by their names: equal, or without the ends that DSPy gives to predictors
    (``answer.predict``), or as ``names`` says.

    Args:
      names: of components, by the names elsewhere.

    Raises:
      TraceError: a name belongs to no component with a prompt, or two to one; has both lists.
    """
    tuned = {one.name: one for one in components if isinstance(one.space, PromptSpace)}
    found: dict[str, str] = {}
    for name in written.prompts:
        stem = name.removesuffix(".predict").removeprefix("self.")
        found[name] = names.get(name) or (name if name in tuned else stem)
    lost = [name for name, own in found.items() if own not in tuned]
    twice = [own for own in found.values() if list(found.values()).count(own) > 1]
    unknown = [name for name in names if name not in written.prompts]
    if lost or twice or unknown:
        what = f"{', '.join(lost)} of no component" if lost else ""
        what = what or (f"{twice[0]} named twice" if twice else f"{', '.join(unknown)} not among them")
        raise TraceError(
            f"{written.where} has prompts of {', '.join(written.prompts)}, and the program has prompts called "
            f"{', '.join(tuned) or 'nothing'} ({what}): say which is which by config.optimize.start_names = NAME="
            "COMPONENT,..."
        )
    return {own: _for_component(written, name, tuned[own]) for name, own in found.items()}


def _for_component(written: Written, name: str, component: Component) -> Prompt:
    instruction, demos = written.prompts[name]
    default, space = component.default, component.space
    assert isinstance(space, PromptSpace)
    own = default.instruction if isinstance(default, Prompt) else ""
    shown_demos = [demo for one in demos if (demo := _demo(one, component)) is not None]
    return Prompt(own if instruction is None else instruction, tuple(shown_demos[: space.max_demos]))


def _demo(fields: Mapping[str, Any], component: Component) -> Demo | None:
    """Fields of a demonstration as inputs and outputs: by the component's own names where they are known, else its last
    field is the output; None where it has no output."""
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
    for part in filter(None, (one.strip() for one in text.split(","))):
        name, equals, other = (one.strip() for one in part.partition("="))
        if not (name and equals and other):
            raise TraceError(f"names are NAME=OTHER, separated by commas, got {part!r}")
        names[name] = other
    return names
