"""A saved program as a web application; needs the extra ``serve``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.applications import Starlette

from optimas_jax.core import event_loop
from optimas_jax.core.types import Trace
from optimas_jax.saved.optimized import Optimized, plain_outputs
from optimas_jax.server.system_app import make_system_app


def app_of(optimized: Optimized) -> Starlette:
    """The application of ``server.system_app`` over a program. Its runs have the event loop of the package, on which
    the clients of the program live."""

    async def run(fields: Mapping[str, Any]) -> Trace:
        return await event_loop.run_beside(optimized.run_fields(fields))

    inputs = optimized.inputs
    return make_system_app(run, plain_outputs, name=optimized.name, required=inputs.required, optional=inputs.optional)
