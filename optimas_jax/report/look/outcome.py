"""Rules on the result of a run: not confirmed, smaller than promised, without effect, none at all."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from optimas_jax.core.folder.events import Accept, Confirmation, Curve, Gate
from optimas_jax.report.look.examples import Call, call_failed, calls_in, change
from optimas_jax.report.look.finding import Finding, plain
from optimas_jax.report.page.text import counted, interval, is_interval, is_number
from optimas_jax.report.run_files import RunFiles

_FAR = 2.6  # standard errors between validation and test; choosing the best of some proposals takes about one
_Z = 1.96
_FEWEST = 8  # examples


def not_confirmed(run: RunFiles) -> list[Finding]:
    """The search's result is not confirmed on fresh examples, or is a loss there."""
    confirmed = (run.results or run.optimized or {}).get("confirmed")
    accepted = (run.results or run.optimized or {}).get("accepted", ())
    if not confirmed or not accepted or confirmed["changes"] == len(accepted):
        return []
    tests = _tests(run, confirmed)
    last = next((test for test in tests if test.get("changes") == len(accepted)), tests[0] if tests else None)
    figures = ""
    if last is not None:
        figures = (
            f", {last['gain']:+.3f}, 95 % interval {interval(last['ci95'])}, on {counted(confirmed['n'], 'example')}"
        )
    if last is not None and last["ci95"][1] < 0:
        sentence = f"The search's result is a loss on examples that no gate has seen{figures}."
        return [Finding("confirmed_loss", sentence, "head", 1)]
    if confirmed["changes"]:
        others = len(accepted) - confirmed["changes"]
        kept = f"best/ has {counted(confirmed['changes'], 'change')}, and not the other {others}"
    else:
        kept = f"best/ has none of {counted(len(accepted), 'accepted change')}"
    why = f" ({plain(confirmed['verdict'], 120)})" if not tests and confirmed["verdict"] else ""
    sentence = f"The search's result is not confirmed on examples that no gate has seen{figures}{why}: {kept}."
    return [Finding("not_confirmed", sentence, "head", 3)]


def _tests(run: RunFiles, confirmed: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    events = [event for event in run.events if isinstance(event, Confirmation)]
    tests = confirmed.get("tests") or (events[-1].tests if events else ())
    return [test for test in tests if is_interval(test.get("ci95")) and is_number(test.get("gain"))]


def less_than_promised(run: RunFiles) -> list[Finding]:
    """The gain on validation examples is far above the gain on test examples: more than both samples explain."""
    results = run.results
    if results is None or not results["accepted"] or results["split"] == "val":
        return []
    promised, error = _promised(run)
    gain = results["gain"]
    errors = math.hypot(error, (gain["ci95"][1] - gain["ci95"][0]) / (2 * _Z))
    if promised <= 0 or promised - gain["mean"] < max(_FAR * errors, 0.5 * promised) or not errors:
        return []
    sentence = (
        f"Validation promised {promised:+.3f}, and the {plain(results['split'])} split gained {gain['mean']:+.3f}, "
        f"95 % interval {interval(gain['ci95'])}: more apart than both samples explain. The "
        "search has fitted its validation examples, or they are of another kind."
    )
    return [Finding("overfit", sentence, "score", 3)]


def _promised(run: RunFiles) -> tuple[float, float]:
    """The validation gain of all kept changes, and its standard error; a change without an interval is given the
    interval of the test."""
    results = run.results or {}
    confirmed = results.get("confirmed")
    kept = results["accepted"][: (confirmed["changes"] or 0) if confirmed else None]
    widths: dict[tuple[int, str], Sequence[float]]
    widths = {(event.iteration, event.component): event.ci95 for event in run.events if isinstance(event, Accept)}
    widths |= {
        (event.iteration, event.component): event.ci95
        for event in run.events
        if isinstance(event, Gate) and event.accepted
    }
    default: Sequence[float] = results["gain"]["ci95"]
    intervals = [widths.get((entry["iteration"], entry["component"]), default) for entry in kept]
    variance = sum(((high - low) / (2 * _Z)) ** 2 for low, high in intervals)
    return sum(entry["val_gain"] for entry in kept), math.sqrt(variance)


def without_effect(run: RunFiles) -> list[Finding]:
    """Changes were kept, but no output of any example changed."""
    confirmed = (run.results or {}).get("confirmed")
    accepted = (run.results or {}).get("accepted") or []
    kept = accepted[: (confirmed["changes"] or 0) if confirmed else None]
    rows = run.examples
    if not kept or len(rows) < _FEWEST or any(_outputs(row["before"]) != _outputs(row["after"]) for row in rows):
        return []
    names = ", ".join(sorted({plain(entry["component"]) for entry in kept}))
    sentence = (
        f"The changes that were kept ({names}) change no output of any of {len(rows)} examples: the gain in validation "
        "came from nothing that is seen here."
    )
    return [Finding("no_effect", sentence, "changes", 3)]


def _outputs(side: Mapping[str, Any]) -> list[Any]:
    return [run["outputs"] for run in side["runs"]]


def flat_scores(run: RunFiles) -> list[Finding]:
    """All examples have one score before and after, so that there was nothing to learn from."""
    scores = {row[side]["score"] for row in run.examples for side in ("before", "after")}
    if len(run.examples) < _FEWEST or len(scores) != 1:
        return []
    score = next(iter(scores))
    what = "the metric, or the program, may be broken" if score <= 0 else "there is nothing to gain"
    failed = Counter(
        (call["component"], str(call["outcome"]))
        for row in run.examples
        for call in {call["component"]: call for call in _failed_calls(row["after"])}.values()  # one for each component
    )
    for (component, outcome), count in failed.most_common(1):
        if 2 * count >= len(run.examples):
            what = f"{plain(component)} fails in {count} of them ({plain(outcome)})"
    sentence = f"All {len(run.examples)} examples score {score:.3f} before and after: {what}."
    return [Finding("flat_scores", sentence, "flips", 2)]


def _failed_calls(side: Mapping[str, Any]) -> list[Call]:
    return [call for run in side["runs"] for call in calls_in(run) if call_failed(call)]


def ended_without_results(run: RunFiles) -> list[Finding]:
    """The run ended early, and has no results."""
    if run.unfinished is None or run.results is not None:
        return []
    sentence = (
        f"The run ended without results: {plain(run.unfinished['reason'], 200)}. The same command goes on: "
        f"{plain(run.unfinished['go_on'], 200)}"
    )
    return [Finding("unfinished", sentence, "head", 1)]


def validation_fell(run: RunFiles) -> list[Finding]:
    """The validation score ends below its start, although every change was accepted as a gain."""
    curve = [event for event in run.events if isinstance(event, Curve)]
    if len(curve) < 2 or curve[-1].val_score >= curve[0].val_score - 1e-9 or not change(run.examples).size:
        return []
    sentence = f"The validation score ended at {curve[-1].val_score:.3f}, below its start of {curve[0].val_score:.3f}."
    return [Finding("validation_fell", sentence, "score", 3)]
