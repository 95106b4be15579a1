"""Observe: the first runs of a program, which tell what a graph knows beforehand.

The fields of its components, and the order in which it calls them, are read off its first runs. One run is made twice:
a program may depend on its inputs and the outputs of its components alone, or no run could be repeated from a record.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from optimas_jax.core.execution import Job
from optimas_jax.core.program import ProgramError, called_after, first_difference, read_by
from optimas_jax.core.types import Trace
from optimas_jax.loop.context import Host, Run

_RUNS = 8  # at most, until every component was called


def observed(run: Run) -> Run:
    """The run of a program, whose system knows the fields and the order of its components; any other run as it is."""
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
    components = tuple(
        dataclasses.replace(
            one,
            inputs=one.inputs or tuple(dict.fromkeys(inputs[one.name])),
            outputs=one.outputs or tuple(dict.fromkeys(outputs[one.name])),
        )
        if one.name in inputs
        else one
        for one in host.system.components
    )
    system = dataclasses.replace(host.system, components=components)
    if all(one.name in inputs for one in components):
        system = dataclasses.replace(system, called_after=called_after(traces), read_by=read_by(traces))
    return dataclasses.replace(run, host=dataclasses.replace(host, system=system))


def first_runs(host: Host) -> Sequence[Trace]:
    """Runs on validation examples, which the search begins with: one, made twice, and more where it does not call every
    component.

    Raises:
      ProgramError: the two differ; names the first call that does.
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
