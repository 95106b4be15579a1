"""Recorded calls in a run (``config.traces``): they become candidates of groups, and demonstrations.

A recorded run of a training example is *replayed*: the program runs on the example with the recorded answers instead of
its models, so that every call has its exact inputs, and the metric scores the outputs. A replayed run replaces a run of
the default configuration, and its calls are the first candidates of their groups. Calls that cannot be replayed (with
inputs that are no example, or from runs with missing parts) keep the inputs in their messages, and the recorded score.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import functools
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from optimas_jax.core.component import Component, ComponentFailure, RunContext
from optimas_jax.core.running.execution import Job
from optimas_jax.core.system import System
from optimas_jax.core.types import RECORDED, Call, Candidate, Example, Group, Outcome, StopRun, Trace, digest
from optimas_jax.core.values import (
    Configuration,
    Demo,
    LoraSpace,
    PromptSpace,
    Value,
    plain_values,
)
from optimas_jax.llm.component import asks_model
from optimas_jax.loop.context import Host
from optimas_jax.loop.folder.recorded import write_traces
from optimas_jax.loop.state import Runs
from optimas_jax.rewards.collect import Try
from optimas_jax.rewards.pairs import merge_groups
from optimas_jax.traces.conversations import with_ids
from optimas_jax.traces.match import Matched, agrees, as_seen, match_calls, texts_of
from optimas_jax.traces.read import TraceFiles
from optimas_jax.traces.rows import ExampleIndex

_MOST_DEMOS = 64  # demonstrations of a component without a score


CallName = tuple[str, str, int, str]  # component, id of the example, occurrence, digest of the inputs


def call_name(example_id: str, call: Call) -> CallName:
    """Names a call whose outputs may differ."""
    return call.component, example_id, call.occurrence, digest(call.inputs)


@dataclasses.dataclass(frozen=True)
class Recordings:
    """Results of matching and replaying recorded calls.

    Attributes:
      runs: replayed runs by id of their example, without repetitions; first the one whose calls were made most often.
      draws: how often each call of replayed runs was made with the same inputs, by ``call_name``.
      groups: groups of calls with a score, some with a single candidate.
      loose: calls of training examples that were not replayed, by (component, id of the example).
      demos: demonstrations by component, from calls without a score that collecting cannot complete.
    """

    runs: Mapping[str, tuple[Trace, ...]] = dataclasses.field(default_factory=dict)
    draws: Mapping[CallName, int] = dataclasses.field(default_factory=dict)
    groups: tuple[Group, ...] = ()
    loose: Mapping[tuple[str, str], tuple[Matched, ...]] = dataclasses.field(default_factory=dict)
    demos: Mapping[str, tuple[Demo, ...]] = dataclasses.field(default_factory=dict)

    @property
    def examples(self) -> frozenset[str]:
        """Ids of the examples with recorded calls."""
        return frozenset(self.runs) | {example_id for _, example_id in self.loose}

    def calls_of(self, group: Group) -> int:
        """Number of calls behind a group's candidates, recorded ones included, also those with equal outputs."""
        name = group.component, group.example_id, group.occurrence, digest(group.inputs)
        collected = sum(not candidate.recorded for candidate in group.candidates)
        return max(len(group.candidates), collected + self.draws.get(name, 0))


NO_RECORDINGS = Recordings()


def use_recordings(host: Host, files: TraceFiles) -> Recordings:
    """Matches recorded calls with components and examples, replays whole runs, and reports how many were used."""
    if not files.calls:
        return NO_RECORDINGS
    matched, left_out = match_calls(files.calls, host.system.components)
    tunable = set(host.system.tunable)
    matched = [match for match in matched if match.component in tunable]  # functions run anyway when a run is replayed
    train = {example.id for example in host.splits["train"]}
    index = ExampleIndex(example for examples in host.splits.values() for example in examples)
    by_run: dict[str, list[Matched]] = {}
    for number, match in enumerate(matched):
        by_run.setdefault(match.call.run or f"#{number}", []).append(match)
    of_runs: list[tuple[Example | None, list[Matched]]] = []
    for calls in by_run.values():
        rows = {digest(match.call.row): match.call.row for match in calls if match.call.row is not None}
        examples = index.find(texts_of(calls), next(iter(rows.values())) if len(rows) == 1 else None)
        if any(example.id not in train for example in examples):
            left_out["of a validation, confirmation or test example"] += len(calls)
        elif len(examples) < 2:
            of_runs.append((examples[0] if examples else None, calls))
        else:
            of_runs += _by_example(calls, examples[0], index)
    recordings = _recordings(host, of_runs, left_out)
    _tell(host, files, sum(len(calls) for _, calls in of_runs), left_out, recordings)
    write_traces(host.folder, files, left_out, recordings.demos)
    return recordings


def _by_example(
    calls: list[Matched], longest: Example, index: ExampleIndex
) -> list[tuple[Example | None, list[Matched]]]:
    """The calls of a run that reads several training examples, by example, where it is a session with several
    questions, or two files count their runs alike: no example is common to the calls that read one, and the first
    component is called for each. A call that reads no example follows the one before it. Any other run is one of its
    ``longest`` example: it may quote others."""
    whole: list[tuple[Example | None, list[Matched]]] = [(longest, calls)]
    if len({match.component for match in calls}) == len(calls):
        return whole
    found = [index.find(texts_of([match]), match.call.row) for match in calls]
    read = [{example.id for example in examples} for examples in found if examples]
    if not read or set.intersection(*read):
        return whole
    parts: dict[str, tuple[Example | None, list[Matched]]] = {}
    example = next(examples[0] for examples in found if examples)
    for match, examples in zip(calls, found, strict=True):
        example = examples[0] if examples else example
        parts.setdefault(example.id, (example, []))[1].append(match)
    first = calls[0].component
    starts = all(any(match.component == first for match in part) for _, part in parts.values())
    return [*parts.values()] if starts else whole


def complete(
    recordings: Recordings, configuration: Configuration, name: str, runs: Runs
) -> tuple[list[Group], list[Try], Mapping[CallName, int]]:
    """The recorded part of a component's groups on some runs, with which collecting begins.

    Returns:
      Groups: the recorded groups of these examples, and recorded calls with a score as candidates of the calls with the
      same inputs. Tries: recorded calls without a score. And how many outputs of each call were recorded beside its
      own.
    """
    calls = {call_name(example.id, call) for example, trace in runs for call in trace.calls_of(name)}
    declared = [group for group in recordings.groups if group.configuration == configuration.digest]
    groups = [g for g in declared if (g.component, g.example_id, g.occurrence, digest(g.inputs)) in calls]
    tries: list[Try] = []
    beside: collections.Counter[CallName] = collections.Counter()
    for example, trace in runs:
        left = list(recordings.loose.get((name, example.id), ()))
        for index in trace.indices(name):
            call = trace.calls[index]
            beside[call_name(example.id, call)] += max(recordings.draws.get(call_name(example.id, call), 0) - 1, 0)
            for match in [match for match in left if agrees(match, call.inputs)]:
                left.remove(match)
                outputs = with_ids(as_seen(match.outputs or {}, call.outputs), call.inputs)
                source = f"{RECORDED}{match.call.where}"
                beside[call_name(example.id, call)] += outputs != call.outputs
                if match.call.score is None:
                    tries.append(Try(index, example, trace, configuration[name], source, outputs=outputs))
                    continue
                candidate = Candidate(outputs, source, (match.call.score,))
                key = (name, example.id, call.inputs)
                groups.append(Group(*key, (candidate,), configuration.digest, call.occurrence))
    return groups, tries, beside


def without_recorded(tries: Sequence[Try], recorded: Mapping[CallName, int]) -> list[Try]:
    """Tries without as many samples of each call as outputs were ``recorded`` beside its own: these are samples of the
    value in use already, drawn by a production system."""
    spared, kept = dict(recorded), list[Try]()
    for attempt in reversed(tries):
        name = call_name(attempt.example.id, attempt.call)
        if attempt.source.startswith("sampled:") and spared.get(name):
            spared[name] -= 1
        else:
            kept.append(attempt)
    return kept[::-1]


def _recordings(
    host: Host, of_runs: Sequence[tuple[Example | None, list[Matched]]], left_out: collections.Counter[str]
) -> Recordings:
    """Replays recorded runs, and sorts their calls into groups, loose calls and demonstrations.

    Args:
      of_runs: recorded calls by run, each with its training example, if there is one.
      left_out: counts of calls left out by reason, which grow.
    """
    replayed = _replay(host, [(example, calls) for example, calls in of_runs if example is not None])
    _tell_scores(host, [(replayed[id(calls)].trace, calls) for _, calls in of_runs if id(calls) in replayed])
    of_runs = _on_scale(host, of_runs, replayed)
    configuration = host.system.default_configuration().digest
    runs: dict[str, dict[str, Trace]] = {}
    draws: collections.Counter[CallName] = collections.Counter()
    groups, loose, demos = list[Group](), dict[tuple[str, str], list[Matched]](), dict[str, list[Demo]]()
    for example, calls in of_runs:
        declared = configuration if all(match.as_declared for match in calls) else ""
        replay = replayed.get(id(calls))
        if replay is not None:
            trace, sources = replay.trace, replay.sources
            assert example is not None
            if declared:
                runs.setdefault(example.id, {}).setdefault(digest([call.outputs for call in trace.calls]), trace)
                draws.update(call_name(example.id, call) for call in trace.calls)
            groups += _groups_of_replay(trace, sources, declared)
        name = example.id if example is not None else f"recorded-{_identity(calls)}"
        for match in calls if replay is None else replay.left:
            if example is not None and declared:
                loose.setdefault((match.component, name), []).append(match)
            if match.inputs is None:
                left_out["with inputs that cannot be read"] += example is None or not declared
                continue
            if not _fits(host.system.by_name[match.component], match, host.system):
                left_out["with other fields than their component"] += 1
                continue
            if match.call.score is not None:
                groups.append(_group(match, name, declared))
            elif example is None or not declared:
                origin = "" if example is None else name
                demos.setdefault(match.component, []).append(
                    Demo(match.inputs, match.outputs or {}, origin, match.call.where)
                )
    return Recordings(
        {name: _most_drawn(tuple(traces.values()), draws) for name, traces in runs.items()},
        draws,
        tuple(merge_groups(groups)),
        {key: tuple(calls) for key, calls in loose.items()},
        {
            name: tuple(different[:_MOST_DEMOS])
            for name, unscored in demos.items()
            if (different := _different(unscored))
        },
    )


def _most_drawn(traces: tuple[Trace, ...], draws: Mapping[CallName, int]) -> tuple[Trace, ...]:
    """Runs of an example, sorted by how often their calls were made, most often first."""
    return tuple(
        sorted(traces, key=lambda trace: -sum(draws[call_name(trace.example_id, call)] for call in trace.calls))
    )


def _different(demos: Iterable[Demo]) -> list[Demo]:
    return list({digest(demo.inputs, demo.outputs): demo for demo in reversed([*demos])}.values())[::-1]


def _identity(calls: Sequence[Matched]) -> str:
    """Names the input of a run that matches no example, by the first call's inputs."""
    first = calls[0]
    return digest(first.component, first.inputs if first.inputs is not None else list(first.call.turns))


def _fits(component: Component, match: Matched, system: System) -> bool:
    """Whether a local reward and a prompt can show the fields of a call as they are."""
    inputs, outputs = set(match.inputs or {}), set(match.outputs or {})
    if not set(component.outputs) <= outputs:
        return False
    return not component.inputs or inputs == set(component.inputs) or system.program is not None


def _group(match: Matched, example_id: str, configuration: str) -> Group:
    assert match.call.score is not None
    candidate = Candidate(match.outputs or {}, f"{RECORDED}{match.call.where}", (match.call.score,))
    return Group(match.component, example_id, match.inputs or {}, (candidate,), configuration)


def _groups_of_replay(trace: Trace, sources: Sequence[str], configuration: str) -> list[Group]:
    return [
        Group(
            call.component,
            trace.example_id,
            call.inputs,
            (Candidate(call.outputs, f"{RECORDED}{source}", (trace.score,)),),
            configuration,
            call.occurrence,
        )
        for call, source in zip(trace.calls, sources, strict=True)
        if source
    ]


def _tell_scores(host: Host, replayed: Sequence[tuple[Trace, Sequence[Matched]]]) -> None:
    """Warns where the metric's score of a replayed run differs from the recorded one: then other recorded scores may
    be on another scale, too."""
    pairs = [(trace.score, match.call.score) for trace, calls in replayed for match in calls[:1]]
    other = [(score, known) for score, known in pairs if known is not None and abs(known - score) > 1e-6]
    if other and not _judges(host.system):
        score, known = other[0]
        host.progress.line(
            f"warning: the metric gives {len(other)} of {len(pairs)} replayed runs another score than "
            f"they were recorded with (such as {score:.3g}, recorded {known:.3g}); there the metric's is used"
        )


def _on_scale(
    host: Host, of_runs: Sequence[tuple[Example | None, list[Matched]]], replayed: Mapping[int, _Replayed]
) -> list[tuple[Example | None, list[Matched]]]:
    """The recorded runs without scores on another scale than the metric's, beside which they would be labels: all of a
    file in which one is outside of 0 to 1 and of the scores of replayed runs. Replayed runs have the metric's own."""
    judged = _judges(host.system)  # the scores of its replayed runs are recorded, too
    known = [0.0, 1.0, *(replay.trace.score for replay in replayed.values() if not judged)]
    low, high = min(known), max(known)
    others = [match for _, calls in of_runs if id(calls) not in replayed for match in calls]
    scored = [(_file(match), match.call.score) for match in others if match.call.score is not None]
    off = {file: score for file, score in scored if not low <= score <= high}
    if not off:
        return [*of_runs]
    host.progress.line(
        f"warning: recorded scores of {', '.join(off)}, such as {next(iter(off.values())):g}, are outside of {low:g} "
        f"to {high:g}, where the metric's are: {sum(file in off for file, _ in scored)} calls are used without a score"
    )
    return [
        (example, calls if id(calls) in replayed else [_unscored(m) if _file(m) in off else m for m in calls])
        for example, calls in of_runs
    ]


def _file(match: Matched) -> str:
    """Name of the file that a call comes from."""
    return match.call.where.partition(",")[0]


def _unscored(match: Matched) -> Matched:
    return dataclasses.replace(match, call=dataclasses.replace(match.call, score=None))


@dataclasses.dataclass(frozen=True)
class _Replayed:
    """A replayed run.

    Attributes:
      trace: of the run.
      sources: source of each of its calls; "" for calls that were not recorded.
      left: recorded calls that it did not make, such as a second choice or a repeated call.
    """

    trace: Trace
    sources: Sequence[str]
    left: list[Matched]


@dataclasses.dataclass
class _Answers:
    """Recorded answers to the calls of one run, each used once.

    Attributes:
      left: recorded calls that are not used yet.
      given: source of each answer, by (component, digest of its inputs, number of equal calls before).
      missing: whether a call had no answer.
    """

    left: list[Matched]
    given: dict[tuple[str, str, int], str] = dataclasses.field(default_factory=dict)
    missing: bool = False

    def take(self, name: str, fields: Mapping[str, Any], seen: Mapping[str, Any]) -> Mapping[str, Any]:
        """The recorded outputs of a component on some inputs; raises ``ComponentFailure`` where there are none."""
        match = next((match for match in self.left if match.component == name and agrees(match, fields)), None)
        if match is None:
            self.missing = True
            raise ComponentFailure(Outcome.CRASHED, "no recorded answer")
        self.left.remove(match)
        key = digest(fields)
        repeat = sum(known[:2] == (name, key) for known in self.given)
        self.given[name, key, repeat] = match.call.where
        return with_ids(as_seen(match.outputs or {}, seen), fields)


def _replay(host: Host, runs: Sequence[tuple[Example, list[Matched]]]) -> dict[int, _Replayed]:
    """Replays runs; returns those that can be replayed, by ``id`` of the list of their recorded calls."""
    if not runs:
        return {}
    default = host.system.default_configuration()
    single = Configuration({name: plain_values(value)[0] for name, value in default.items()})
    [first] = host.run("first run", [Job(default, host.splits["val"][0], host.seed)])  # it is on the tape
    seen = {call.component: call.outputs for call in first.calls}

    async def replay(example: Example, calls: list[Matched]) -> _Replayed | None:
        """A replayed run; None if it cannot be replayed."""
        answers = _Answers(list(calls))
        score = next((match.call.score for match in calls if match.call.score is not None), None)
        system = _answered(host.system, answers, seen, score)
        try:
            trace = await system.run(single, example, host.seed)
        except (asyncio.CancelledError, StopRun):
            raise
        except Exception:  # the recorded answers lead the program elsewhere: the run is not replayed
            return None
        if answers.missing or trace.outcome is not Outcome.OK or (_judges(host.system) and score is None):
            return None
        rest = [_unscored(match) for match in answers.left]  # the score is of the run that was replayed
        return _Replayed(trace, [answers.given.get(call.key, "") for call in trace.calls], rest)

    ends = host.gather("recorded runs", [functools.partial(replay, example, calls) for example, calls in runs])
    return {id(calls): end for (_, calls), end in zip(runs, ends, strict=True) if end is not None}


def _asks(component: Component) -> bool:
    """Whether a component asks a model."""
    return isinstance(component.space, PromptSpace | LoraSpace) or asks_model(component.run)


def _judges(system: System) -> bool:
    return inspect.iscoroutinefunction(system.metric)


def _answered(system: System, answers: _Answers, seen: Mapping[str, Mapping], score: float | None) -> System:
    """The system with recorded answers instead of its prompts. A metric that asks a model is not called: the recorded
    score replaces it."""

    def recorded(component: Component) -> Component:
        async def run(fields: Mapping[str, Any], value: Value | None, context: RunContext) -> Mapping[str, Any]:
            return answers.take(component.name, fields, seen.get(component.name, {}))

        return dataclasses.replace(component, run=run)

    def known() -> float:
        return score or 0.0

    components = tuple(recorded(component) if _asks(component) else component for component in system.components)
    metric = known if _judges(system) else system.metric
    return dataclasses.replace(system, components=components, metric=metric, meter=None, watch=None)


def _tell(host: Host, files: TraceFiles, used: int, left_out: Mapping[str, int], found: Recordings) -> None:
    """Shows a line on the use of the recorded calls, and one on those left out."""
    runs, pairs = sum(map(len, found.runs.values())), sum(len(group.candidates) > 1 for group in found.groups)
    demos, single = sum(map(len, found.demos.values())), sum(map(len, found.loose.values()))
    host.progress.line(
        f"  {used} of {len(files.calls)} recorded calls are used: {runs} runs of {len(found.runs)} training examples "
        f"replayed, {len(found.groups)} groups ({pairs} with several outputs), {single} single calls of training "
        f"examples, {demos} demonstrations without a score"
    )
    if left_out := {reason: count for reason, count in sorted(left_out.items()) if count}:
        words = "; ".join(f"{count} {reason}" for reason, count in left_out.items())
        hint = ""
        if left_out.get("of no component"):
            names = ", ".join(host.system.tunable)
            hint = f". Components are {names}: a call names its own, or has its instruction as the system message"
        host.progress.line(f"  recorded calls left out: {words}{hint}")
