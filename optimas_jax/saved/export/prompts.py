"""The prompts of a saved configuration as DSPy's JSON, and as Markdown."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from optimas_jax.core.types import thaw
from optimas_jax.core.values import Adapter, Choice, Configuration, Demo, Hyperparameters, PerInstance, Prompt, Value
from optimas_jax.llm.render import render_value


class ExportError(ValueError):
    """A result that cannot be exported in this form; the message has the reason and the way out."""


def prompts_of(configuration: Configuration) -> tuple[dict[str, Prompt], list[str]]:
    """Prompts by component, and descriptions of the values that are not prompts.

    Raises:
      ExportError: there is no prompt.
    """
    prompts, others = {}, []
    for name, value in configuration.items():
        plain = value.values[0] if isinstance(value, PerInstance) and len(value.values) == 1 else value
        if isinstance(plain, Prompt):
            prompts[name] = plain
        if plain is not value:
            others.append(f"{name} keeps the best of {value.samples} samples")  # type: ignore[union-attr]
        elif not isinstance(value, Prompt):
            others.append(f"{name} is {describe(value)}")
    if not prompts:
        raise ExportError(f"there is no prompt to export: {'; '.join(others) or 'nothing is tuned'}")
    return prompts, others


def describe(value: Value) -> str:
    """A value that is no prompt, as text."""
    match value:
        case Hyperparameters(settings):
            return ", ".join(f"{name} = {thaw(setting)!r}" for name, setting in settings.items())
        case Choice(name):
            return f"the choice {name!r}"
        case Adapter(digest):
            return f"the adapter {digest}" if digest else "the weights of its model"
        case PerInstance(values):
            return f"a choice among {len(values)} values for each input"
        case _:
            return "a prompt"


def to_dspy(prompts: Mapping[str, Prompt], names: Mapping[str, str]) -> dict[str, Any]:
    """The state that ``module.load`` of DSPy reads: instructions and demonstrations by predictor. The module keeps its
    own prefixes and descriptions of fields.

    Args:
      names: names of predictors by component, where they differ.

    Raises:
      ExportError: a name is given for no component, or for two.
    """
    if unknown := [name for name in names if name not in prompts]:
        raise ExportError(f"no prompt is called {', '.join(unknown)}; there are {', '.join(prompts)}")
    renamed = [names.get(name, name) for name in prompts]
    if len(set(renamed)) < len(renamed) or "metadata" in renamed:
        raise ExportError(f"predictors have names of their own, and none is 'metadata', got {', '.join(renamed)}")
    state: dict[str, Any] = {
        predictor: {
            "traces": [],
            "train": [],
            "demos": [_dspy_demo(demo) for demo in prompt.demos],
            "signature": {"instructions": prompt.instruction, "fields": []},
            "lm": None,
        }
        for predictor, prompt in zip(renamed, prompts.values(), strict=True)
    }
    return {**state, "metadata": {"dependency_versions": {}}}


def _dspy_demo(demo: Demo) -> dict[str, Any]:
    return {"augmented": True, **thaw(demo.inputs), **thaw(demo.outputs)}


def to_markdown(title: str, prompts: Mapping[str, Prompt], others: list[str]) -> str:
    """Instructions and demonstrations to read and to review."""
    parts = [f"# {title}"]
    for name, prompt in prompts.items():
        parts += [f"## {name}", _fenced(prompt.instruction)]
        for number, demo in enumerate(prompt.demos, start=1):
            origin = demo.recorded or demo.example_id
            parts.append(f"### Demonstration {number}{f' (from {origin})' if origin else ''}")
            for field, value in {**demo.inputs, **demo.outputs}.items():
                kind = "" if field in demo.inputs else " (output)"
                parts += [f"**{field}**{kind}", _fenced(render_value(value))]
    if others:
        parts += ["## Not prompts", *(f"- {text}" for text in others)]
    return "\n\n".join(parts) + "\n"


def _fenced(text: str) -> str:
    """A text as a fenced block, even if it contains fences itself."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def as_json(data: Any) -> str:
    """Text of a JSON file."""
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
