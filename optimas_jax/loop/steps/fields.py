"""Fields of the components of a program, which its first runs tell."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from optimas_jax.core.system import System

OBSERVED = "observed.json"  # in the run folder: names of inputs and outputs by component


def with_fields(system: System, fields: Mapping[str, Sequence[Sequence[str]]]) -> System:
    """A program whose components have the fields that were seen.

    Args:
      fields: inputs and outputs by component, as in ``OBSERVED``; they decide what a local reward reads.
    """
    components = tuple(
        dataclasses.replace(
            one,
            inputs=one.inputs or tuple(fields[one.name][0]),
            outputs=one.outputs or tuple(fields[one.name][1]),
        )
        if one.name in fields
        else one
        for one in system.components
    )
    return dataclasses.replace(system, components=components)
