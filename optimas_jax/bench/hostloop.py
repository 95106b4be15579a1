"""Measures the host loop: one round of calls through the search, compared with the ideal and with the bare client."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence

from optimas_jax.bench.calls import draw_latencies, ideal_seconds
from optimas_jax.bench.peer import Side
from optimas_jax.bench.report import Row, spread


@dataclasses.dataclass(frozen=True)
class CallCase:
    """A round of calls.

    Attributes:
      name: unique within the suite.
      latency: kind of ``draw_latencies``.
      over_http: whether a server in a process of its own answers; then the bare client is measured, too.
      calls, concurrency, mean: of the round; mean latency in seconds.
    """

    name: str
    latency: str
    over_http: bool
    calls: int = 2000
    concurrency: int = 500
    mean: float = 0.5


CASES = (
    CallCase("2,000 calls of 0.5 s, in process", "constant", False),
    CallCase("2,000 calls of 0.5 s, HTTP", "constant", True),
    CallCase("2,000 calls of log-normal 0.5 s, HTTP", "log-normal", True),
)


def run_call_case(case: CallCase, repeats: int, line: Callable[[str], None]) -> Row:
    """Measures one case; sides take turns.

    Raises:
      SideError: if a side or the server fails.
    """
    latencies = draw_latencies(case.latency, case.calls, case.mean)
    ideal = ideal_seconds(latencies, case.concurrency)
    line(f"hostloop: {case.name} (ideal: {ideal:.2f} s)")
    module = [sys.executable, "-m"]
    with contextlib.ExitStack() as stack:
        work = {"latencies": latencies, "concurrency": case.concurrency, "url": ""}
        sides = {"ours": stack.enter_context(Side("ours", [*module, "optimas_jax.bench.callers", "ours"]))}
        if case.over_http:
            server = stack.enter_context(Side("server", [*module, "optimas_jax.bench.calls"]))
            work |= server.ask({"latencies": latencies})
            sides["peer"] = stack.enter_context(Side("openai", [*module, "optimas_jax.bench.callers", "bare"]))
        for side in sides.values():
            side.ask({"prepare": work})
        answers = []
        for repeat in range(repeats):
            answers.append({name: side.ask({"run": repeat}) for name, side in sides.items()})
            times = ", ".join(f"{name} {answer['seconds']:.2f} s" for name, answer in answers[-1].items())
            line(f"  repeat {repeat + 1}/{repeats}: {times}")
    seconds, cpu = ({name: [answer[name][what] for answer in answers] for name in sides} for what in ("seconds", "cpu"))
    return row_of(case, ideal, seconds, cpu, {name: answers[-1][name]["peak_mb"] for name in sides})


def row_of(
    case: CallCase,
    ideal: float,
    seconds: Mapping[str, Sequence[float]],
    cpu: Mapping[str, Sequence[float]],
    peak_mb: dict[str, float],
) -> Row:
    """The row of a case: medians as rates; the fraction of the roofline is the ideal time over our median. On an
    otherwise idle machine a round takes at most the ideal time plus all processor seconds."""
    median = {name: statistics.median(of_side) for name, of_side in seconds.items()}
    used = {name: f"{statistics.median(of_side):.2f} s of processors" for name, of_side in cpu.items()}
    peer = median.get("peer")
    return Row(
        suite="hostloop",
        case=case.name,
        unit="calls/s",
        ours=case.calls / median["ours"],
        peer=peer and case.calls / peer,
        peer_name="openai" if peer else None,
        ratio=peer and peer / median["ours"],
        spread={name: spread(of_side) for name, of_side in seconds.items()},
        roofline_fraction=ideal / median["ours"],
        peak_mb=peak_mb,
        agreement=None,
        notes={**used, "ours": f"{median['ours'] / ideal:.2f} times the ideal {ideal:.2f} s, {used['ours']}"},
    )
