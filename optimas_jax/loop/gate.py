"""Gate: whether the global score on validation examples confirms a proposal; everything upstream of it is kept."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from optimas_jax.core.stats import Comparison, compare
from optimas_jax.core.system import Job, run_many
from optimas_jax.core.types import Trace
from optimas_jax.core.values import Configuration, value_digest
from optimas_jax.loop.context import Run
from optimas_jax.loop.rank import Proposal
from optimas_jax.search.gate import GateConfig, accepts, is_futile, looks


def confirm(
    run: Run, config: GateConfig, configuration: Configuration, old: Sequence[Trace], name: str, proposal: Proposal
) -> tuple[bool, Comparison, list[Trace]]:
    """The paired test, looked at on the way (``search.gate.looks``) to give up early.

    Args:
      old: validation runs under ``configuration``.

    Returns:
      Whether the proposal passes, the comparison, and the validation runs under it.
    """
    changed = configuration.replace(name, proposal.value)
    val = run.splits["val"]
    new: list[Trace] = []
    for start, stop in itertools.pairwise((0, *looks(config, len(val)))):
        jobs = [
            Job(changed, example, run.config.seed, run.system.kept(trace, name))
            for example, trace in zip(val[start:stop], old[start:stop], strict=True)
        ]
        with run.progress.bar(f"gate ({proposal.kind})", len(jobs)) as advance:
            new += run_many(run.system, jobs, concurrency=run.config.concurrency, on_done=advance)
        comparison = compare([t.score for t in new], [t.score for t in old[:stop]])
        if stop < len(val) and is_futile(config, comparison, stop / len(val)):
            return False, comparison, new
    return accepts(config, comparison), comparison, new


def report_gate(
    run: Run, iteration: int, name: str, proposal: Proposal, comparison: Comparison, accepted: bool
) -> None:
    """The verdict, for the journal and on the console."""
    run.folder.emit(
        "gate",
        iteration=iteration,
        component=name,
        value=value_digest(proposal.value),
        kind=proposal.kind,
        expected_gain=proposal.expected_gain,
        local_gain=proposal.local_gain,
        val_gain=comparison.mean,
        ci95=comparison.ci95,
        p_positive=comparison.p_positive,
        n=comparison.n,
        accepted=accepted,
    )
    verdict = "[green]accepted[/green]" if accepted else "rejected"
    run.progress.line(
        f"  {verdict}: {proposal.kind}, expected gain {proposal.expected_gain:+.3f}, "
        f"validation gain {comparison.mean:+.3f} (P(gain > 0) = {comparison.p_positive:.2f}, n = {comparison.n})"
    )
