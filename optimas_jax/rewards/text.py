"""The text that a local reward reads: a component's task and input, then a candidate output."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from optimas_jax.core.render import render_reward_candidate, render_reward_prefix
from optimas_jax.core.system import System


@dataclasses.dataclass(frozen=True)
class TextGroup:
    """One prefix and M candidates.

    Attributes:
      component: its name; it numbers the reward head.
      prefix: task and input, shared by the candidates.
      candidates: rendered outputs.
    """

    component: str
    prefix: str
    candidates: tuple[str, ...]


def text_group(
    system: System, component: str, inputs: Mapping[str, Any], outputs: Sequence[Mapping[str, Any]]
) -> TextGroup:
    """Renders an input of a component and candidate outputs; the outputs of a failed component are empty."""
    node = system.by_name[component]
    prefix = render_reward_prefix(node.description, inputs, node.inputs)
    return TextGroup(component, prefix, tuple(render_reward_candidate(fields, node.outputs) for fields in outputs))
