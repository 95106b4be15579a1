"""Many runs of a saved program, recorded on a tape, so that none is paid for twice."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

from optimas_jax.core.component import ComponentBug
from optimas_jax.core.progress import Progress
from optimas_jax.core.running.execution import gather
from optimas_jax.core.types import Example, Outcome, Trace, freeze
from optimas_jax.core.usage import Usage
from optimas_jax.llm.accounts.ledger import Ledger
from optimas_jax.llm.tapes.tape import Tape
from optimas_jax.llm.tapes.taped import TapedCompleter
from optimas_jax.programs.plain import PlainError
from optimas_jax.saved.optimized import Optimized

CONCURRENCY = 32  # runs in flight


def run_examples(
    optimized: Optimized,
    examples: Sequence[Example],
    tape: Tape,
    progress: Progress,
    label: str,
    *,
    concurrency: int = CONCURRENCY,
    stop_at_bugs: bool = True,
) -> tuple[list[Trace], Usage]:
    """Runs a program on all examples.

    Args:
      label: of the bar.
      stop_at_bugs: whether an exception of the program, or a value that cannot be recorded, ends all runs; otherwise
        only this run has failed.

    Returns:
      Traces in the order of the examples, and what the runs cost with an empty tape.
    """
    ledger = Ledger()
    taped = TapedCompleter(tape, ledger, optimized.system.completer)
    runner = dataclasses.replace(optimized, system=optimized.system.using(taped))

    async def run(example: Example) -> Trace:
        try:
            return await runner.run(example)
        except (ComponentBug, PlainError) as error:
            if stop_at_bugs:
                raise
            return Trace(example.id, optimized.seed, (), freeze({}), Outcome.CRASHED, 0.0, str(error))

    with progress.bar(label, len(examples)) as advance, ledger.limit() as allowance:
        calls = [functools.partial(run, example) for example in examples]
        traces = gather(calls, concurrency=concurrency, on_done=advance)
    return traces, allowance.used
