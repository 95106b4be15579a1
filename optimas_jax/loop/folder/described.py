"""``system.json``: the components of a run, and the values that its search starts from, for readers of the folder
without the program."""

from __future__ import annotations

from collections.abc import Sequence

from optimas_jax.core.system import System
from optimas_jax.core.values import value_to_json
from optimas_jax.loop.journal import RunFolder

DESCRIBED = "system.json"


def describe_system(folder: RunFolder, system: System, tuned: Sequence[str]) -> None:
    """Writes ``system.json``, unless a command that paid for something has written it.

    Args:
      tuned: names of the components that the search may change.
    """
    if folder.read(DESCRIBED) is not None and not folder.is_unused():
        return
    parts = [
        {
            "name": name,
            "description": part.description,
            "inputs": list(part.inputs),
            "outputs": list(part.outputs),
            "tuned": name in tuned,
            "value": None if part.default is None else value_to_json(part.default),
        }
        for name, part in ((name, system.by_name[name]) for name in system.order)
    ]
    inputs = list(system.input_fields)
    folder.write(DESCRIBED, {"program": system.program is not None, "inputs": inputs, "components": parts})
