"""Synthetic run folders: a clean run with real gains and ordinary noise, or one without any change, to plant harms in.

A run is plain data (``Planted``); ``write`` puts it into a folder through the forms of ``core.folder``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from optimas_jax.core.folder import events
from optimas_jax.core.folder.events import Event, to_json
from optimas_jax.core.folder.files import append_lines, json_line, write_json
from optimas_jax.core.stats import compare, mean_interval
from optimas_jax.core.usage import Usage
from optimas_jax.core.values import Demo, Prompt, value_digest, value_to_json
from optimas_jax.report.run_files import RunFiles, read_run

COMPONENTS = ("rewriter", "retriever", "answerer")
_WORDS = (
    *("Managua", "Islamabad", "Paris", "Ulaanbaatar", "Quito", "Tirana", "Nairobi", "Lima", "Oslo", "Accra", "Rabat"),
    *("Saudi Arabia", "Ivory Coast", "New Zealand", "South Korea", "Costa Rica", "El Salvador", "Sri Lanka"),
)
_START = Prompt("Answer the question with a short phrase.")
_DEMOS = (
    Demo({"question": "Which town is the seat of Ruritania?"}, {"answer": "Strelsau"}, "train-0001"),
    Demo({"question": "Which river runs through Strelsau?"}, {"answer": "The Eppel"}, "train-0002"),
)


@dataclasses.dataclass
class Planted:
    """A run before it is written. ``results`` is made from ``rows`` (``finish``), and ``more`` replaces its fields."""

    rows: list[dict[str, Any]]
    config: dict[str, Any]
    events: list[Event]
    proposals: list[dict[str, Any]]
    accepted: list[dict[str, Any]]
    more: dict[str, Any] = dataclasses.field(default_factory=dict)
    files: dict[str, Any] = dataclasses.field(default_factory=dict)


def clean_run(
    seed: int = 0, n: int = 100, kinds: int = 3, lift: float = 0.3, noise: float = 0.06, repeats: int = 1
) -> Planted:
    """A run whose result is better: a wrong answer becomes right with probability ``lift``, and any answer turns over
    with probability ``noise`` in each of its runs, before and after alike."""
    rng = np.random.default_rng(seed)
    before = rng.random(n) < 0.35
    after = before | (rng.random(n) < lift)
    rows = [_row(rng, index, kinds, bool(before[index]), bool(after[index]), noise, repeats) for index in range(n)]
    value = Prompt(_START.instruction, _DEMOS) if lift else _START
    gain = float(after.mean() - before.mean())
    return Planted(
        rows,
        {"benchmark": "planted", "variant": "", "seed": seed, "optimize": {"iterations": 4, "score": "local"}},
        _events(rng, value, 0.35, gain),
        _proposals(value, gain),
        [_accepted(value, 0.35, gain)] if lift else [],
    )


def null_run(seed: int, n: int, kinds: int, noise: float = 0.2, repeats: int = 1) -> Planted:
    """A run that changed nothing but by chance."""
    return clean_run(seed, n, kinds, 0.0, noise, repeats)


def plant(run: Planted, harm: Callable[[Planted], None]) -> Planted:
    """The run with a harm in it."""
    harm(run)
    return run


def answer(row: dict[str, Any], text: Any, score: float | None = None, side: str = "after") -> None:
    """Gives an example another answer, and another score."""
    for one in row[side]["runs"]:
        one["outputs"] = {"answer": text}
        one["calls"][-1]["outputs"] = {"answer": text}
        if score is not None:
            one["score"] = score
    row[side]["score"] = sum(one["score"] for one in row[side]["runs"]) / len(row[side]["runs"])


def write(run: Planted, folder: Path) -> Path:
    """Writes a run folder, and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    results = finish(run)
    write_json(folder / "config.json", run.config)
    write_json(folder / "run.json", _record(results))
    for name, data in run.files.items():
        write_json(folder / name, data)
    append_lines(folder / "journal.jsonl", [json_line({**to_json(event), "time": 0.0}) for event in run.events])
    append_lines(folder / "proposals.jsonl", [json_line(row) for row in run.proposals])
    (folder / "evaluations").mkdir(exist_ok=True)
    append_lines(folder / "evaluations" / "test.jsonl", [json_line(row) for row in run.rows])
    write_json(folder / "evaluations" / "test.json", results)
    write_json(folder / "results.json", results)
    return folder


def read(run: Planted, folder: Path) -> RunFiles:
    """What reports get of a run: written, checked by its forms, and read."""
    return read_run(write(run, folder))


def files_of(run: Planted) -> RunFiles:
    """The same without a folder."""
    results = finish(run)
    record = _record(results)
    return RunFiles(
        Path("planted"), run.config, record, results, None, None, None, None, run.events, run.proposals, run.rows
    )


def finish(run: Planted) -> dict[str, Any]:
    """``results.json`` of a run."""
    sides = {name: [row[key]["score"] for row in run.rows] for name, key in _SIDES.items()}
    compared = compare(sides["optimized"], sides["baseline"])
    kinds = dict.fromkeys(row["kind"] for row in run.rows if row["kind"])
    results = {
        "label": "test",
        "evaluation": {"split": "test", "repeats": len(run.rows[0]["before"]["runs"])},
        "benchmark": run.config["benchmark"],
        "variant": run.config["variant"],
        "seed": run.config["seed"],
        "split": "test",
        "n": len(run.rows),
        "metric": "exact match",
        "chance": 0.0,
        **{name: {**_estimate(scores), "scores": scores} for name, scores in sides.items()},
        "gain": {"mean": compared.mean, "ci95": list(compared.ci95), "p_value": compared.p_value},
        "confirmed": {"n": 40, "changes": len(run.accepted), "verdict": "confirmed"} if run.accepted else None,
        "by_kind": {kind: _kind(run.rows, kind) for kind in kinds},
        "outcomes": _outcomes(run.rows),
        "unread": {},
        "cut": {},
        "alignment": {name: alignment(0.72, 0.63, 0.8) for name in COMPONENTS},
        "label_use": {name: {"labelled_runs": 30, "effective_runs": 52.0, "local_reward": True} for name in COMPONENTS},
        "dropped": {"answerer": {"same outputs": 2, "repeated": 1}},
        "accepted": run.accepted,
        "pareto": [point(0, "", 400), point(1, "answerer", 480)][: 1 + len(run.accepted)],
        "ledger": {"evaluate": {name: _bill(200, 20_000) for name in COMPONENTS}},
        "spent": {step: {"spent": usage(calls).to_json(), "predicted": predicted(calls)} for step, calls in _STEPS},
        "paid_calls": 900,
        "wall_seconds": 321.0,
        "peak_rss_mb": 800,
    }
    return {**json.loads(json.dumps(results)), **run.more}


def alignment(accuracy: float, low: float, high: float, shorter: float = 0.5) -> dict[str, Any]:
    """The alignment of a local reward, as results hold it."""
    controls = {"shorter": shorter, "loglik": 0.52, "majority": 0.5}
    measured = {"pair_accuracy": accuracy, "ci95": [low, high], "n_pairs": 160, "n_inputs": 40, "spearman": 0.4}
    return {**measured, "controls": controls, "ceiling": None}


def point(changes: int, component: str, tokens: float) -> dict[str, Any]:
    """A configuration that passed the gate, as results hold it."""

    def estimate(mean: float) -> dict[str, Any]:
        return {"mean": mean, "ci95": [0.95 * mean, 1.05 * mean]}

    marks = {"exceeds": [], "dominated": False, "kept": changes > 0}
    costs = {"dollars": estimate(tokens * 1e-6), "tokens": estimate(tokens), "seconds": None}
    means = {"score": estimate(0.5), "reward": estimate(0.5), **costs}
    return {"changes": changes, "component": component, "configuration": "c" * 20, **means, **marks}


def usage(calls: int) -> Usage:
    """What some calls took."""
    return Usage(calls, 100 * calls, 20 * calls, 0.001 * calls, 0.1 * calls, calls // 3, calls)


def predicted(calls: int) -> dict[str, Any]:
    """What a plan expected of some calls."""
    shares = {"low": 0.7, "expected": 1.05, "high": 1.4}
    return {name: usage(int(share * calls)).to_json() for name, share in shares.items()}


_SIDES = {"baseline": "before", "optimized": "after"}
_STEPS = (("collect", 60), ("optimize: label", 300), ("optimize: gate", 240), ("evaluate", 600))


def _row(
    rng: np.random.Generator, index: int, kinds: int, before: bool, after: bool, noise: float, repeats: int
) -> dict[str, Any]:
    number = index % 2 == 1
    gold = f"{rng.uniform(1, 90):.1f} million" if number else _WORDS[index % len(_WORDS)]
    asked = "population" if number else "capital"
    question = f"What is the {asked} of the country number {index} of the list?"
    return {
        "id": f"test-{index:04d}",
        "kind": f"kind {index % kinds}" if kinds > 1 else "",
        "inputs": {"question": question},
        "gold": {"answer": gold},
        "before": _side(rng, question, gold, before, noise, repeats),
        "after": _side(rng, question, gold, after, noise, repeats),
    }


def _side(
    rng: np.random.Generator, question: str, gold: str, right: bool, noise: float, repeats: int
) -> dict[str, Any]:
    runs = [_run(rng, question, gold, right != (rng.random() < noise), seed) for seed in range(repeats)]
    return {"score": sum(run["score"] for run in runs) / repeats, "runs": runs}


def _run(rng: np.random.Generator, question: str, gold: str, right: bool, seed: int) -> dict[str, Any]:
    text = gold if right else _wrong(rng, gold)
    passages = [f"Passage {rng.integers(1000)} on {question[12:40]}"]
    calls = [
        ("rewriter", {"question": question}, {"query": question[12:-1]}),
        ("retriever", {"query": question[12:-1]}, {"passages": passages}),
        ("answerer", {"question": question, "passages": passages}, {"answer": text}),
    ]
    return {
        "seed": seed,
        "outputs": {"answer": text},
        "score": float(right),
        "feedback": "",
        "parts": {},
        "outcome": "ok",
        "calls": [
            {"component": name, "occurrence": 0, "inputs": inputs, "outputs": outputs, "outcome": "ok", "detail": ""}
            for name, inputs, outputs in calls
        ],
    }


def _wrong(rng: np.random.Generator, gold: str) -> str:
    """A wrong answer, mostly of the right type, sometimes of another one."""
    word, number = str(rng.choice(_WORDS)), f"{rng.uniform(1, 90):.1f} million"
    of_type, other = (number, word) if gold[0].isdigit() else (word, number)
    sort = rng.random()
    if sort < 0.1:
        return other
    if sort < 0.14:
        return "I don't know."
    return f"The answer is {of_type}." if sort < 0.4 else of_type


def _events(rng: np.random.Generator, value: Prompt, start: float, gain: float) -> list[Event]:
    found: list[Event] = [
        events.Groups(component=name, groups=14, informative=9, stopped="enough groups with different rewards")
        for name in COMPONENTS
    ]
    found.append(events.Curve(at="start", iteration=0, val_score=start, spent=usage(60)))
    for iteration, name in enumerate(("answerer", "rewriter", "answerer", "retriever")):
        accepted = iteration == 0 and bool(value.demos)
        found.append(events.Pick(iteration=iteration, component=name, rule="gap"))
        found.append(events.Proposed(component=name, usable=6, dropped={"repeated": 1}, iteration=iteration))
        found.append(_gate(iteration, name, gain if accepted else float(rng.normal(-0.05, 0.05)), accepted))
        if accepted:
            found.append(_accept(value, start, gain))
    reached = start + (gain if value.demos else 0.0)
    end = events.SearchEnd(
        iterations=4, reason="all iterations are done", accepted=int(bool(value.demos)), val_score=reached
    )
    return [*found, end]


def _gate(iteration: int, name: str, gain: float, accepted: bool) -> events.Gate:
    promised = {"expected_gain": gain, "labelled_gain": gain, "local_gain": 0.1}
    tested = {"val_gain": gain, "ci95": (gain - 0.15, gain + 0.15), "p_value": 0.01 if accepted else 0.6}
    return events.Gate(
        iteration=iteration,
        component=name,
        value="v",
        kind="demos",
        n=32,
        accepted=accepted,
        of=32,
        **promised,
        **tested,
    )


def _accept(value: Prompt, start: float, gain: float) -> events.Accept:
    return events.Accept(
        iteration=0,
        component="answerer",
        kind="demos",
        value=value,
        val_gain=gain,
        ci95=(gain - 0.15, gain + 0.15),
        p_value=0.01,
        val_score=start + gain,
        covered=True,
        id="0-answerer-1",
        parent=value_digest(_START),
    )


def _accepted(value: Prompt, start: float, gain: float) -> dict[str, Any]:
    head = {"iteration": 0, "component": "answerer", "kind": "demos", "value": value_to_json(value)}
    return {**head, "val_gain": gain, "val_score": start + gain}


def _proposals(value: Prompt, gain: float) -> list[dict[str, Any]]:
    shown = [value if value.demos else Prompt("Answer."), Prompt("Answer the question."), Prompt("Think, then answer.")]
    rows = []
    for number, one in enumerate(shown):
        accepted = number == 0 and bool(value.demos)
        gate = {"n": 32, "gain": gain, "ci95": [gain - 0.15, gain + 0.15], "p_value": 0.01, "of": 32}
        rows.append(
            {
                "id": f"{number}-answerer-1",
                "iteration": number,
                "component": "answerer",
                "parent": value_digest(_START),
                "optimiser": "demos",
                "digest": value_digest(one),
                "text": one.instruction,
                "value": value_to_json(one),
                "race": {"rank": 1, "expected_gain": gain, "inputs": 16, "labelled": 4},
                "gate": gate if accepted or number == 1 else None,
                "verdict": "accepted" if accepted else "refused" if number == 1 else "not tested",
                "reason": f"gain {gain:+.3f} on 32 validation examples (p = 0.010)",
            }
        )
    return rows


def _estimate(scores: list[float]) -> dict[str, Any]:
    mean, ci95 = mean_interval(scores)
    return {"mean": mean, "ci95": list(ci95)}


def _kind(rows: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    own = [row for row in rows if row["kind"] == kind]
    means = {name: float(np.mean([row[key]["score"] for row in own])) for name, key in _SIDES.items()}
    return {"n": len(own), **means}


def _outcomes(rows: list[dict[str, Any]]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for row in rows:
        for run in row["after"]["runs"]:
            counts[run["outcome"]] = counts.get(run["outcome"], 0) + 1
    return counts


def _bill(calls: int, tokens: int) -> dict[str, Any]:
    paid = {"calls": calls, "paid_calls": calls, "requests": calls, "seconds": 20.0}
    return {**paid, "prompt_tokens": tokens, "completion_tokens": tokens // 5, "usd": 0.01}


def _record(results: dict[str, Any]) -> dict[str, Any]:
    date = "2026-11-29T13:53:25+00:00"
    return {
        "command": "launch/run.py --config=planted.py",
        "commit": "a" * 40,
        "started": date,
        "versions": {"python": "3.11.2"},
        "platform": "Linux x86_64",
        "finished": date,
        "devices": None,
        "seconds": results["wall_seconds"],
        "peak_rss_mb": 800,
        "paid_calls": results["paid_calls"],
        "prompt_tokens": 60_000,
        "completion_tokens": 12_000,
        "tokens": 72_000,
        "usd": 0.03,
        "parts": [],
    }
