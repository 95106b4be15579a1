"""A graph as a program: every component is called when those that it reads from have answered."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping
from typing import Any

from optimas_jax.core.component import ComponentFailure
from optimas_jax.core.program import current_scope
from optimas_jax.core.system import System
from optimas_jax.core.types import Outcome, freeze


def as_program(graph: System) -> System:
    async def run(fields: Mapping[str, Any]) -> Mapping[str, Any]:
        known = dict(fields)

        async def call(name: str, parents: list[asyncio.Task[None]]) -> None:
            await asyncio.gather(*parents)
            inputs = freeze({field: known[field] for field in graph.by_name[name].inputs})
            made = await current_scope().call(name, inputs)
            if made.outcome is not Outcome.OK:
                raise ComponentFailure(made.outcome, made.detail)
            known.update(made.outputs)

        tasks: dict[str, asyncio.Task[None]] = {}
        for name in graph.order:
            tasks[name] = asyncio.ensure_future(call(name, [tasks[parent] for parent in graph.parents[name]]))
        await asyncio.gather(*tasks.values())
        return {field: known[field] for field in graph.output_fields}

    return dataclasses.replace(graph, program=run)
