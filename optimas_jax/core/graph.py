"""The graph that components form by the fields they read and make: what is wrong with it, who reads whom, the order."""

from __future__ import annotations

import graphlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol


class GraphError(ValueError):
    """A system whose parts do not fit together."""


class Node(Protocol):
    """What the graph knows of a component."""

    @property
    def name(self) -> str: ...

    @property
    def inputs(self) -> tuple[str, ...]: ...

    @property
    def outputs(self) -> tuple[str, ...]: ...


def problems(nodes: Sequence[Node], input_fields: Sequence[str], output_fields: Sequence[str]) -> Iterator[str]:
    """Everything that keeps the nodes from being a graph, but for cycles, which ``order`` finds."""
    names = [node.name for node in nodes]
    yield from (f"component {name!r} is defined twice" for name in sorted({n for n in names if names.count(n) > 1}))
    makers: dict[str, str] = dict.fromkeys(input_fields, "the example")
    for node in nodes:
        for field in node.outputs:
            if field in makers:
                yield f"field {field!r} comes from {makers[field]} and from component {node.name!r}"
            makers[field] = f"component {node.name!r}"
    for node in nodes:
        for field in node.inputs:
            if field not in makers:
                yield f"component {node.name!r} reads {field!r}, which nobody provides"
    yield from (f"output field {field!r} is made by nobody" for field in output_fields if field not in makers)


def parents(nodes: Sequence[Node]) -> Mapping[str, tuple[str, ...]]:
    """Component -> the components it reads from, in the order of definition."""
    maker = {field: node.name for node in nodes for field in node.outputs}
    return {
        node.name: tuple(other.name for other in nodes if any(maker.get(field) == other.name for field in node.inputs))
        for node in nodes
    }


def order(edges: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Topological order of ``parents``; components that could swap keep the order of definition.

    Raises:
      GraphError: if there is none.
    """
    sorter = graphlib.TopologicalSorter(edges)
    try:
        sorter.prepare()
    except graphlib.CycleError as error:
        raise GraphError(f"the system's graph has a cycle: {' -> '.join(reversed(error.args[1]))}") from error
    position = {name: index for index, name in enumerate(edges)}
    found: list[str] = []
    ready = list(sorter.get_ready())
    while ready:
        ready.sort(key=position.__getitem__)
        name = ready.pop(0)
        found.append(name)
        sorter.done(name)
        ready.extend(sorter.get_ready())
    return tuple(found)
