"""Runs the reference solutions of BigCodeBench rows in the sandbox: which tasks can pass on this machine, and why
others cannot. With --solution=TEXT that body replaces every solution, and none should pass.

python launch/check_solutions.py --path=FILE [--source=stdlib|installed|all] [--solution=pass] [--workers=4]
"""

from __future__ import annotations

import textwrap
from concurrent.futures import ThreadPoolExecutor

from absl import app, flags

from optimas_jax.benchmarks.bigcodebench import CASE, SOURCES, SystemConfig, read_tasks
from optimas_jax.core.types import Example
from optimas_jax.sandbox.program import check_walls
from optimas_jax.sandbox.unittests import Verdict, run_tests

_PATH = flags.DEFINE_string("path", "", "File of rows; empty for the hub's.")
_SOURCE = flags.DEFINE_enum("source", "stdlib", SOURCES[:3], "Which tasks.")
_SOLUTION = flags.DEFINE_string("solution", "", "Body of the function in place of each solution.")
_WORKERS = flags.DEFINE_integer("workers", 4, "Programs at once; many of them sleep.", lower_bound=1)


def main(argv: list[str]) -> int:
    """Runs all solutions, and prints the failures and the number of passed ones; returns the exit code."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    print(check_walls("preferred") or "programs run in a jail")
    examples, origin = read_tasks(_PATH.value, _SOURCE.value)
    limits = SystemConfig.limits

    def check(example: Example) -> Verdict:
        program = example.gold["solution"]
        if _SOLUTION.value:
            program = example.gold["stub"] + textwrap.indent(_SOLUTION.value, "    ") + "\n"
        return run_tests(program, example.gold["test"], limits, CASE)

    def is_odd(verdict: Verdict) -> bool:
        return (verdict.status != "passed") != bool(_SOLUTION.value)

    with ThreadPoolExecutor(_WORKERS.value) as pool:
        verdicts = list(pool.map(check, examples))
    # Some tests measure time: programs that failed while others ran are tried again alone.
    verdicts = [check(example) if is_odd(old) else old for example, old in zip(examples, verdicts, strict=True)]
    for example, verdict in zip(examples, verdicts, strict=True):
        if is_odd(verdict):
            print(f"{example.id}: {verdict.status} after {verdict.seconds:.0f} s. {verdict.summary(400)}\n")
    passed = sum(verdict.status == "passed" for verdict in verdicts)
    print(f"{passed} of {len(verdicts)} passed: {origin}")
    return 0


if __name__ == "__main__":
    app.run(main)
