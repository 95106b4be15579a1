"""Fields of the components of a program, observed in its first runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from optimas_jax.core.system import System

OBSERVED = "observed.json"  # in the run folder: names of inputs and outputs by component


def with_fields(system: System, fields: Mapping[str, Sequence[Sequence[str]]]) -> System:
    """A program whose components have the observed fields.

    Args:
      fields: names of inputs and outputs by component, as in ``OBSERVED``; local rewards read these fields.
    """
    components = tuple(
        dataclasses.replace(
            component,
            inputs=component.inputs or tuple(fields[component.name][0]),
            outputs=component.outputs or tuple(fields[component.name][1]),
        )
        if component.name in fields
        else component
        for component in system.components
    )
    return dataclasses.replace(system, components=components)
