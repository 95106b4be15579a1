"""The text that a local reward reads: a component's task and input, then a candidate output."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from optimas_jax.core.system import System
from optimas_jax.llm.render import render_reward_candidate, render_reward_inputs, render_reward_task, render_value


@dataclasses.dataclass(frozen=True)
class TextGroup:
    """One prefix and M candidates.

    Attributes:
      component: name of the component; determines the reward head.
      task: task of the component, which distinguishes components.
      inputs: rendered input.
      candidates: rendered outputs.
      fields, outputs: inputs and outputs before rendering, for functions of the user's.
    """

    component: str
    task: str
    inputs: str
    candidates: tuple[str, ...]
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)
    outputs: tuple[Mapping[str, Any], ...] = dataclasses.field(default=(), compare=False, repr=False)

    @property
    def prefix(self) -> str:
        """Task and input, shared by the candidates."""
        return self.task + self.inputs


def text_group(
    system: System, component: str, inputs: Mapping[str, Any], outputs: Sequence[Mapping[str, Any]]
) -> TextGroup:
    """Renders an input of a component and candidate outputs; the outputs of a failed component are empty."""
    node = system.by_name[component]
    return TextGroup(
        component,
        render_reward_task(node.description),
        render_reward_inputs(inputs, node.inputs or tuple(inputs)),
        tuple(render_reward_candidate(fields, node.outputs or tuple(fields)) for fields in outputs),
        inputs,
        tuple(outputs),
    )


def output_texts(system: System, component: str, outputs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The values of outputs of a component as text, without the names of their fields."""
    names = system.by_name[component].outputs
    return ["\n".join(render_value(fields.get(name, "")) for name in names or fields) for fields in outputs]
