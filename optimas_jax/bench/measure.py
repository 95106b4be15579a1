"""Measures a case: every side prepares, then repeats interleave (ours, peer, ours, peer, ...) on one machine."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from optimas_jax.bench.peer import OURS, Peer, Side
from optimas_jax.bench.report import Row, median_interval, spread
from optimas_jax.bench.roofline import needed_seconds, policy_seconds
from optimas_jax.bench.work import Case, Task, Work, draw, to_json
from optimas_jax.checkpoints.export import hf_folder
from optimas_jax.checkpoints.sources import resolve
from optimas_jax.checkpoints.tokenizer import load_tokenizer
from optimas_jax.checkpoints.weights import load_config
from optimas_jax.parallel.speed import measure_rates

_SETTLE = 0.1  # seconds in which the threads of the previous side go to sleep
_MOST_DIFFERENCE = 1e-4  # largest difference of scores and losses, relative to their size if that is above 1
_LEAST_EQUAL = 0.9  # least share of equal greedy tokens: a near tie decided otherwise changes the rest of its answer


class NotTheSameWork(RuntimeError):
    """Two sides gave different answers, so their times cannot be compared."""


class Worker(Protocol):
    """A process that does the work of one side: ``bench.peer.Side``, or a fake."""

    name: str

    def ask(self, message: dict[str, Any]) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class Measured:
    """Measurements of one side.

    Attributes:
      seconds: of each repeat.
      output: of the first repeat.
      peak_mb: peak resident memory.
      note: settings that the side chose.
      phases: seconds of each phase in each repeat, if the work has phases.
    """

    seconds: tuple[float, ...]
    output: tuple[float, ...]
    peak_mb: float
    note: str
    phases: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)


def run_case(case: Case, spec: str, peers: Sequence[Peer], repeats: int, line: Callable[[str], None]) -> list[Row]:
    """Measures one case on our side and on the peers that can do it, each in a process of its own.

    Raises:
      SideError: if a side fails.
      NotTheSameWork: if a peer that should give our answers does not.
    """
    peers = [peer for peer in peers if case.task in peer.scripts]
    commands = {peer.name: peer.command(case.task) for peer in peers}
    work = make_work(case, spec, for_peers=any(not peer.tree for peer in peers))
    rates = measure_rates(np.dtype(np.float32))
    speed = f"{rates.flops / 1e9:.0f} GFLOP/s in float32 products, {rates.bandwidth / 1e9:.1f} GB/s"
    line(f"{case.suite}: {case.name} ({speed})")
    with contextlib.ExitStack() as stack:
        sides = [stack.enter_context(Side("ours", OURS))]
        sides += [stack.enter_context(Side(peer.name, commands[peer.name], peer.tree)) for peer in peers]
        ours, *others = measure(
            work, sides, repeats, line, exact=[peer.name for peer in peers if case.task in peer.exact]
        )
    config = load_config(resolve(spec))
    phases = policy_seconds(config, work, rates) if case.is_policy else {}
    least = needed_seconds(config, work, rates)
    return rows(case, ours, dict(zip(commands, others, strict=True)), least, phases)


def make_work(case: Case, spec: str, *, for_peers: bool) -> Work:
    """Draws a case for a model, from token ids that are not special; for peers, with weights in formats that they
    read."""
    source = resolve(spec)
    backend = load_tokenizer(source).backend
    special = backend.backend_tokenizer.get_added_tokens_decoder()
    vocabulary = [index for index in range(len(backend)) if index not in special]
    work = draw(case, spec, vocabulary, load_config(source).embed_dim)
    if not for_peers:
        return work
    gguf = str(source.path) if source.kind == "gguf" else ""
    return dataclasses.replace(work, folder=str(hf_folder(source)), gguf=gguf)


def measure(
    work: Work, sides: Sequence[Worker], repeats: int, line: Callable[[str], None], exact: Sequence[str] = ()
) -> list[Measured]:
    """Prepares all sides, then runs repeat 0 on each in turn, repeat 1 on each in turn, and so on.

    Args:
      exact: names of sides whose answers must equal the answers of the first side.
    """
    notes = []
    for side in sides:
        start = time.monotonic()
        notes.append(side.ask({"prepare": to_json(work)})["note"])
        line(f"  {side.name} is ready after {time.monotonic() - start:.0f} s{notes[-1] and ': ' + notes[-1]}")
    answers: list[list[dict[str, Any]]] = []  # by repeat, then by side
    for repeat in range(repeats):
        answers.append([])
        for side in sides:
            time.sleep(_SETTLE)
            answers[-1].append(side.ask({"run": repeat}))
        if repeat == 0:  # before more time is spent
            _check(work.case.task, {side.name: a["output"] for side, a in zip(sides, answers[0], strict=True)}, exact)
        times = (f"{side.name} {a['seconds']:.2f} s" for side, a in zip(sides, answers[-1], strict=True))
        line(f"  repeat {repeat + 1}/{repeats}: {', '.join(times)}")
    return [_measured(list(of_side), note) for of_side, note in zip(zip(*answers, strict=True), notes, strict=True)]


def _measured(answers: Sequence[Mapping[str, Any]], note: str) -> Measured:
    """The measurements of one side, from its answers to all repeats."""
    phases = answers[0].get("phases", ())
    return Measured(
        tuple(answer["seconds"] for answer in answers),
        tuple(answers[0]["output"]),
        answers[-1]["peak_mb"],
        note,
        {phase: tuple(answer["phases"][phase] for answer in answers) for phase in phases},
    )


def agreement(task: Task, ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Share of equal tokens, or the largest difference of scores or losses, relative to those above 1."""
    if len(ours) != len(theirs):
        raise NotTheSameWork(f"{len(ours)} numbers on one side, {len(theirs)} on the other")
    if task == "generate":
        return sum(a == b for a, b in zip(ours, theirs, strict=True)) / len(ours)
    return max(abs(a - b) / max(1.0, abs(a)) for a, b in zip(ours, theirs, strict=True))


def _check(task: Task, outputs: dict[str, Sequence[float]], exact: Sequence[str]) -> None:
    ours = next(iter(outputs.values()))
    for name in exact:
        value = agreement(task, ours, outputs[name])
        if value < _LEAST_EQUAL if task == "generate" else not value <= _MOST_DIFFERENCE:
            what = "share of equal tokens" if task == "generate" else "largest difference"
            raise NotTheSameWork(f"{name} and ours do not give the same answers ({what} {value:.3g})")


def rows(
    case: Case,
    ours: Measured,
    peers: dict[str, Measured],
    least_seconds: float,
    least_of_phases: Mapping[str, float] | None = None,
) -> list[Row]:
    """Rows with medians, ratios and spreads: one for every unit, phase and peer; without peers one for every unit and
    phase."""
    table = []
    for name, peer in (peers or {None: None}).items():
        sides = {"ours": ours} | ({} if peer is None else {"peer": peer})
        total = {side: measured.seconds for side, measured in sides.items()}
        for unit, count in case.units().items():
            table.append(_row(case, name, sides, unit, count, total, least_seconds))
        for phase, least in (least_of_phases or {}).items():
            seconds = {side: measured.phases[phase] for side, measured in sides.items()}
            table.append(_row(case, name, sides, f"{phase}/s", 1.0, seconds, least))
    return table


def _row(
    case: Case,
    peer_name: str | None,
    sides: Mapping[str, Measured],
    unit: str,
    count: float,
    seconds: Mapping[str, Sequence[float]],
    least_seconds: float,
) -> Row:
    """The row of one unit: ``count`` units in ``seconds`` (by side, of each repeat)."""
    median = {side: statistics.median(of_side) for side, of_side in seconds.items()}
    both = "peer" in sides
    ratios = [peer / ours for ours, peer in zip(seconds["ours"], seconds["peer"], strict=True)] if both else []
    return Row(
        suite=case.suite,
        case=case.name,
        unit=unit,
        ours=count / median["ours"],
        peer=count / median["peer"] if both else None,
        peer_name=peer_name,
        ratio=statistics.median(ratios) if both else None,
        interval=median_interval(ratios),
        spread={side: spread(of_side) for side, of_side in seconds.items()},
        roofline_fraction=least_seconds / median["ours"],
        peak_mb={side: measured.peak_mb for side, measured in sides.items()},
        agreement=agreement(case.task, sides["ours"].output, sides["peer"].output) if both else None,
        notes={side: measured.note for side, measured in sides.items()},
    )
