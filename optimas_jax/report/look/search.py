"""Rules on the search: no proposal tested by the gate, proposals dropped, ended by the budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from optimas_jax.core.folder.events import Curve, Gate, OutOfBudget, Pick, Proposed, SearchEnd
from optimas_jax.report.look.finding import Finding, plain
from optimas_jax.report.page.text import counted
from optimas_jax.report.run_files import RunFiles

_FEWEST = 3  # dropped proposals
_MOST = 0.9  # share of dropped proposals with the same reason


def gate_never_tested(run: RunFiles) -> list[Finding]:
    """The search is over, and no proposal ever came to the gate."""
    ended = any(isinstance(event, SearchEnd) for event in run.events) or run.optimized is not None
    tested = any(isinstance(event, Gate) for event in run.events) or any(row.get("gate") for row in run.proposals)
    iterations = len({event.iteration for event in run.events if isinstance(event, Pick)})
    if (not ended and run.results is None) or tested or not (iterations or run.proposals):
        return []
    verdicts = Counter(row.get("verdict", "not tested") for row in run.proposals)
    became = ", ".join(f"{count} {plain(name)}" for name, count in verdicts.most_common(3))
    tail = f": {counted(len(run.proposals), 'proposal')}, {became}" if run.proposals else ": there were no proposals"
    sentence = f"The gate has tested nothing in {counted(iterations, 'iteration')}{tail}."
    return [Finding("gate_idle", sentence, "proposals", 3)]


def dropped_for_one_reason(run: RunFiles) -> list[Finding]:
    """All proposals of a component were dropped, nearly all of them for the same reason."""
    findings = []
    for name, reasons in _dropped(run).items():
        total = sum(reasons.values())
        reason, count = max(reasons.items(), key=lambda item: item[1], default=("", 0))
        if total < _FEWEST or count < _MOST * total or _usable(run, name):
            continue
        sentence = (
            f"All {total} proposals for {plain(name)} were dropped, {count} of them for one reason: {plain(reason)}."
        )
        findings.append(Finding("dropped", sentence, "proposals", 4))
    return findings


def _dropped(run: RunFiles) -> Mapping[str, Mapping[str, int]]:
    """Numbers of dropped proposals by component and reason: from the results, or from the journal so far."""
    dropped = (run.results or run.optimized or {}).get("dropped")
    if dropped:
        return dropped
    counts: dict[str, Counter[str]] = {}
    for event in run.events:
        if isinstance(event, Proposed):
            counts.setdefault(event.component, Counter()).update(event.dropped)
    if not counts:
        for row in run.proposals:
            if row.get("verdict") == "not tried":
                counts.setdefault(str(row.get("component")), Counter())[str(row.get("reason"))] += 1
    return counts


def _usable(run: RunFiles, name: str) -> int:
    """Proposals for a component that were raced or tested."""
    usable = sum(event.usable for event in run.events if isinstance(event, Proposed) and event.component == name)
    raced = sum(bool(row.get("race") or row.get("gate")) for row in run.proposals if row.get("component") == name)
    return max(usable, raced)


def budget_ended(run: RunFiles) -> list[Finding]:
    """The budget ended the search before its iterations were done."""
    cut = [event for event in run.events if isinstance(event, OutOfBudget)]
    ends = [event for event in run.events if isinstance(event, SearchEnd)]
    by_budget = "budget" in ends[-1].reason if ends else bool(cut)
    if not by_budget:
        return []
    begun = ends[-1].iterations if ends else len({e.iteration for e in run.events if isinstance(e, Pick)})
    planned = (run.config.get("optimize") or {}).get("iterations")
    of = f" of {planned}" if planned else ""
    spent = [event.spent for event in run.events if isinstance(event, Curve | OutOfBudget)]
    after = f", after {spent[-1].tokens:,} tokens, {spent[-1].calls:,} calls and ${spent[-1].usd:.4f}" if spent else ""
    sentence = f"The budget ended the search in iteration {begun}{of}{after}: the rest was not searched."
    return [Finding("budget", sentence, "bill", 4)]


def gate_examples_too_few(run: RunFiles) -> list[Finding]:
    """Changes were accepted on fewer than five validation examples."""
    few = [event for event in run.events if isinstance(event, Gate) and event.accepted and event.n < 5]
    if not few:
        return []
    sentence = (
        f"{counted(len(few), 'change')} {'was' if len(few) == 1 else 'were'} accepted on "
        f"{min(event.n for event in few)} validation examples: too few to tell a gain from chance."
    )
    return [Finding("few_examples", sentence, "proposals", 4)]
