"""Rules on local rewards: nothing to learn from, no better than chance, more expensive than what they saved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optimas_jax.core.folder.events import Alignment, Groups, Tuned
from optimas_jax.report.look.finding import Finding, plain
from optimas_jax.report.page.text import counted, interval, is_interval
from optimas_jax.report.run_files import RunFiles

_AT_CHANCE = 0.6  # pair accuracy below which a reward is at chance, if its interval includes 0.5
_WIDE = 0.8  # an interval that reaches this far says too little
_SAVED = 1.25  # effective runs for each labelled run: below it the costs of collecting count
_ROW = {"pair_accuracy", "ci95", "n_pairs", "n_inputs", "controls"}
_FEWEST = 24  # labelled runs


def nothing_to_learn_from(run: RunFiles) -> list[Finding]:
    """A component has no group of outputs with different rewards."""
    if not _uses_rewards(run):
        return []
    groups = {event.component: event for event in run.events if isinstance(event, Groups)}
    empty = {name: event for name, event in groups.items() if not event.informative}
    if not empty:
        return []
    first = next(iter(empty.values()))
    names = ", ".join(map(plain, empty))
    tried = sum(event.groups for event in empty.values())
    reason = f"; {plain(first.component)}: {plain(first.stopped, 100)}" if first.stopped else ""
    what = f"of {counted(tried, 'group')} of outputs none has different rewards" if tried else "no group of outputs"
    sentence = f"Local rewards have nothing to learn from at {names}: {what}{reason}."
    return [Finding("no_groups", sentence, "rewards", 4)]


def at_chance(run: RunFiles) -> list[Finding]:
    """A local reward orders outputs no better than chance, on inputs that it was not trained on."""
    findings = []
    for name, row in alignments(run).items():
        if not is_interval(row.get("ci95")):
            continue
        low, high = row["ci95"]
        figures = (
            f"pair accuracy {row['pair_accuracy']:.3f}, 95 % interval {interval(row['ci95'])}, on "
            f"{counted(row['n_pairs'], 'pair')} of {counted(row['n_inputs'], 'input')}"
        )
        if high < 0.5:
            sentence = f"The local reward of {plain(name)} prefers the worse outputs: {figures}; chance is 0.5."
            findings.append(Finding("alignment", sentence, "rewards", 3))
        elif low <= 0.5 and row["pair_accuracy"] < _AT_CHANCE and high < _WIDE:
            sentence = f"The local reward of {plain(name)} is not above chance: {figures}; chance is 0.5."
            findings.append(Finding("alignment", sentence, "rewards", 4))
    return findings


def behind_a_control(run: RunFiles) -> list[Finding]:
    """A rule that learns nothing orders outputs better than a local reward."""
    words = {"shorter": "the shorter output wins", "loglik": "the likelier one", "majority": "the one of the majority"}
    findings = []
    for name, row in alignments(run).items():
        controls = {control: row["controls"].get(control) or 0.0 for control in words}
        best = max(controls, key=lambda control: controls[control])
        if row["ci95"] is None or controls[best] <= row["ci95"][1] or row["ci95"][1] < 0.5:
            continue
        sentence = (
            f"At {plain(name)} a rule that learns nothing ({words[best]}) orders outputs better than the local reward: "
            f"{controls[best]:.3f} of the pairs, and {row['pair_accuracy']:.3f}, 95 % interval "
            f"{interval(row['ci95'])}."
        )
        findings.append(Finding("control", sentence, "rewards", 5))
    return findings


def cost_more_than_saved(run: RunFiles) -> list[Finding]:
    """Collecting for local rewards took more runs of the system than local rewards saved; or they saved none."""
    result = run.results or run.optimized or {}
    used = {name: row for name, row in (result.get("label_use") or {}).items() if row["local_reward"]}
    labelled = sum(row["labelled_runs"] for row in used.values())
    effective = sum(row["effective_runs"] for row in used.values())
    if labelled < _FEWEST or effective >= _SAVED * labelled:
        return []
    saved = effective - labelled
    cost = ((result.get("spent") or {}).get("collect") or {}).get("spent") or {}
    runs, calls = cost.get("system_runs", 0), cost.get("calls", 0)
    if not (runs or calls) or saved >= max(runs, 0.02 * labelled):
        return []
    took = f"{runs:,} runs" if runs else f"{calls:,} calls"
    sentence = (
        f"Local rewards saved {max(saved, 0):,.1f} runs of the system ({labelled:,} labelled runs were worth "
        f"{effective:,.1f}), and collecting for them took {took}."
    )
    return [Finding("rewards_cost", sentence, "rewards", 6)]


def weights_learned_nothing(run: RunFiles) -> list[Finding]:
    """Updates of a component's weights changed nothing, or made them worse."""
    findings = []
    for event in run.events:
        if isinstance(event, Tuned) and event.updates and not event.learned:
            sentence = (
                f"The weights of {plain(event.component)} have learned nothing: none of "
                f"{counted(event.updates, 'update')} changed anything."
            )
            findings.append(Finding("no_update", sentence, "rewards", 4))
    return findings[:1]


def alignments(run: RunFiles) -> Mapping[str, Any]:
    """Alignment by component: from the results, or the last one in the journal."""
    recorded = [event.alignment for event in run.events if isinstance(event, Alignment)]
    by_component = (run.results or run.optimized or {}).get("alignment") or (recorded[-1] if recorded else {})
    if not _uses_rewards(run):
        return {}
    return {name: row for name, row in by_component.items() if isinstance(row, Mapping) and set(row) >= _ROW}


def _uses_rewards(run: RunFiles) -> bool:
    """Whether the search chose by local rewards, and not by a control."""
    score = (run.config.get("optimize") or {}).get("score", "local")
    return score in ("local", "own")
