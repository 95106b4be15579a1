"""The graph of components, which read and write named fields: its problems, its edges, its topological order."""

from __future__ import annotations

import graphlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol


class GraphError(ValueError):
    """A system whose components do not form a graph."""


class Node(Protocol):
    """The parts of a component that the graph depends on."""

    @property
    def name(self) -> str: ...

    @property
    def inputs(self) -> tuple[str, ...]: ...

    @property
    def outputs(self) -> tuple[str, ...]: ...


def problems(nodes: Sequence[Node], input_fields: Sequence[str], output_fields: Sequence[str]) -> Iterator[str]:
    """Messages about all faults of the graph except cycles, which ``order`` reports."""
    names = [node.name for node in nodes]
    yield from (f"component {name!r} is defined twice" for name in sorted({n for n in names if names.count(n) > 1}))
    sources: dict[str, str] = dict.fromkeys(input_fields, "the example")
    for node in nodes:
        for field in node.outputs:
            if field in sources:
                yield f"field {field!r} comes from {sources[field]} and from component {node.name!r}"
            sources[field] = f"component {node.name!r}"
    for node in nodes:
        for field in node.inputs:
            if field not in sources:
                yield f"component {node.name!r} reads {field!r}, which no component or input provides"
    yield from (
        f"output field {field!r} is provided by no component or input"
        for field in output_fields
        if field not in sources
    )


def parents(nodes: Sequence[Node]) -> Mapping[str, tuple[str, ...]]:
    """Component -> the components it reads from, in the order of definition."""
    source = {field: node.name for node in nodes for field in node.outputs}
    read = {node.name: {source.get(field) for field in node.inputs} for node in nodes}
    return {node.name: tuple(other.name for other in nodes if other.name in read[node.name]) for node in nodes}


def order(edges: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Topological order of ``parents``; components that are not ordered by it keep the order of definition.

    Raises:
      GraphError: if there is a cycle.
    """
    sorter = graphlib.TopologicalSorter(edges)
    try:
        sorter.prepare()
    except graphlib.CycleError as error:
        raise GraphError(f"the system's graph has a cycle: {' -> '.join(reversed(error.args[1]))}") from error
    position = {name: index for index, name in enumerate(edges)}
    ordered: list[str] = []
    ready = list(sorter.get_ready())
    while ready:
        ready.sort(key=position.__getitem__)
        name = ready.pop(0)
        ordered.append(name)
        sorter.done(name)
        ready.extend(sorter.get_ready())
    return tuple(ordered)
