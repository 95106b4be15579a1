"""Observe: the first runs of a program, which show the structure that a graph declares.

The fields of its components, and the order of their calls, are read from its first runs. One run is made twice: a
program may depend only on its inputs and the outputs of its components, or no run could be repeated from a record.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from optimas_jax.core.program import ProgramError
from optimas_jax.core.running.execution import Job
from optimas_jax.core.types import Call, Trace
from optimas_jax.loop.context import Host, Run
from optimas_jax.loop.steps.fields import OBSERVED, with_fields

_RUNS = 8  # most runs until every component was called


def observed(run: Run) -> Run:
    """The run with the observed fields and order of components, if the system is a program; other runs unchanged."""
    host = run.host
    if host.system.program is None:
        return run
    with host.ledger.phase("observe"), host.ledger.limit():
        traces = first_runs(host)
    inputs, outputs = dict[str, list[str]](), dict[str, list[str]]()
    for call in (call for trace in traces for call in trace.calls):
        inputs.setdefault(call.component, []).extend(call.inputs)
        outputs.setdefault(call.component, []).extend(call.outputs)
    for name in host.components:
        if name not in inputs:
            host.progress.line(f"{name} was not called in the first {len(traces)} runs of the program")
    names = from_first_to_last(traces)
    fields = {name: [list(dict.fromkeys(inputs[name])), list(dict.fromkeys(outputs[name]))] for name in names}
    host.folder.write(OBSERVED, fields)
    system = with_fields(host.system, fields)
    if all(component.name in inputs for component in system.components):
        system = dataclasses.replace(system, called_after=called_after(traces), read_by=read_by(traces))
    return dataclasses.replace(run, host=dataclasses.replace(host, system=system))


def first_runs(host: Host) -> Sequence[Trace]:
    """Runs a program on the first validation examples: twice on the first one, and once on more if that run does not
    call every component.

    Raises:
      ProgramError: the two runs differ; names the first call that differs.
    """
    default = host.system.default_configuration()
    example, *more = host.splits["val"][:_RUNS]
    [first] = host.run("first run", [Job(default, example, host.seed)])
    [again] = host.run("the same again", [Job(default, example, host.seed, host.system.kept(first))])
    if difference := first_difference(first.calls, again.calls):
        raise ProgramError(
            f"two runs of the program on example {example.id!r} differ: {difference}. A program may depend on its "
            "arguments and on what its components return alone; make a component of what draws random numbers, reads "
            "a clock or keeps a state"
        )
    if all(first.reaches(name) for name in host.system.tunable):
        return [first]
    return [first, *host.run("first runs", [Job(default, other, host.seed) for other in more])]


def from_first_to_last(traces: Sequence[Trace]) -> list[str]:
    """Components in the order of their last calls: by the distance of that call from the end of a run, on average over
    the runs that reach them. The component that writes the answer comes late, whichever branches the runs took."""
    distances: dict[str, list[int]] = {}
    for trace in traces:
        last = {call.component: len(trace.calls) - index for index, call in enumerate(trace.calls)}
        for name, distance in last.items():
            distances.setdefault(name, []).append(distance)
    return sorted(distances, key=lambda name: -statistics.fmean(distances[name]))


def called_after(traces: Sequence[Trace]) -> dict[str, frozenset[str]]:
    """Component -> components that were called after it in one of the runs."""
    after: dict[str, set[str]] = {}
    for trace in traces:
        later: set[str] = set()
        for call in reversed(trace.calls):
            after.setdefault(call.component, set()).update(later)
            later.add(call.component)
    return {name: frozenset(others) for name, others in after.items()}


def read_by(traces: Sequence[Trace]) -> dict[str, frozenset[str]]:
    """Component -> components that read its outputs in these runs, directly or through others: a value that it wrote,
    or a text with it, is in their inputs. An estimate, for the cost of a run from a component on."""
    readers: dict[str, set[str]] = {}
    for trace in traces:
        wrote: list[tuple[set[str], set[Any]]] = []  # for each call: source components of its outputs, and values
        for call in trace.calls:
            values = set(_leaves(call.inputs))
            texts = [value for value in values if isinstance(value, str)]
            sources: set[str] = set()
            for behind, written in wrote:
                if any(value in values or any(str(value) in text for text in texts) for value in written):
                    sources |= behind
            readers.setdefault(call.component, set())
            for source in sources:
                readers[source].add(call.component)
            wrote.append(({*sources, call.component}, set(_leaves(call.outputs))))
    return {name: frozenset(others) for name, others in readers.items()}


def _leaves(value: Any) -> Iterator[Any]:
    """Texts and numbers in plain data."""
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _leaves(item)
    elif value not in ("", None):
        yield value


def first_difference(before: Sequence[Call], after: Sequence[Call]) -> str:
    """Sentence on the first call in which two runs differ; "" if they are equal."""
    for first, second in itertools.zip_longest(before, after):
        if first is None or second is None:
            [call] = [call for call in (first, second) if call is not None]
            return f"call {call.occurrence + 1} of {call.component!r} is made in one of them only"
        if first.component != second.component:
            return f"one calls {first.component!r} where the other calls {second.component!r}"
        if first.inputs != second.inputs:
            names = [
                name for name in {**first.inputs, **second.inputs} if first.inputs.get(name) != second.inputs.get(name)
            ]
            return f"call {first.occurrence + 1} of {first.component!r} has another {', '.join(names)}"
    return ""
