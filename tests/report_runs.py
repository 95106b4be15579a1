"""Runs as reports read them, made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from runs import RESULTS

from optimas_jax.core.folder.events import Event, from_json
from optimas_jax.report.run_files import RunFiles


def call(component: str, inputs: dict[str, Any], outputs: dict[str, Any], **rest: Any) -> dict[str, Any]:
    return {"component": component, "occurrence": 0, "inputs": inputs, "outputs": outputs, "outcome": "ok", **rest}


def side(score: float, outputs: dict[str, Any], calls: list[dict[str, Any]], repeats: int = 1) -> dict[str, Any]:
    run = {"seed": 0, "outputs": outputs, "score": score, "feedback": "", "parts": {}, "outcome": "ok", "calls": calls}
    return {"score": score, "runs": [run] * repeats}


def example(index: int, before: float, after: float, answers: tuple[str, str] = ("Oslo", "Bergen")) -> dict[str, Any]:
    """An evaluated example: a writer that answers the same in both runs, and a speaker that does not."""
    question = {"question": f"What is the capital number {index}?"}
    sides = {}
    for name, score, answer in zip(("before", "after"), (before, after), answers, strict=True):
        calls = [
            call("writer", question, {"draft": "a draft"}),
            call("speaker", {"draft": "a draft", **question}, {"answer": answer}),
        ]
        sides[name] = side(score, {"answer": answer}, calls)
    return {"id": f"row-{index}", "kind": "one-hop", "inputs": question, "gold": {"answer": answers[1]}, **sides}


def proposal(index: int, **changes: Any) -> dict[str, Any]:
    gate = {"n": 32, "of": 32, "gain": 0.1, "ci95": [0.02, 0.18], "p_value": 0.01}
    race = {"rank": 1, "expected_gain": 0.2, "labelled_gain": 0.1, "local_gain": 0.3, "inputs": 16, "labelled": 4}
    row = {
        "id": f"{index}-speaker-abc",
        "iteration": index,
        "component": "speaker",
        "parent": "0" * 20,
        "optimiser": "opro",
        "digest": f"{index:020}",
        "text": f"Answer in {index} words.",
        "value": {"type": "prompt", "instruction": f"Answer in {index} words.", "demos": []},
        "race": race,
        "gate": gate,
        "verdict": "accepted",
        "reason": "gain +0.100 on 32 validation examples (p = 0.010)",
    }
    return {**row, **changes}


def results(examples: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """Results of the run that has these examples."""
    sides = {}
    for name, key in (("baseline", "before"), ("optimized", "after")):
        scores = [row[key]["score"] for row in examples]
        mean = sum(scores) / max(1, len(scores))
        sides[name] = {"mean": mean, "ci95": [mean - 0.1, mean + 0.1], "scores": scores}
    gain = sides["optimized"]["mean"] - sides["baseline"]["mean"]
    found = {"mean": gain, "ci95": [gain - 0.05, gain + 0.05], "p_value": 0.01}
    return {**RESULTS, "label": "test", "n": len(examples), "gain": found, **sides, **changes}


def run_files(folder: Path = Path("runs/one"), **changes: Any) -> RunFiles:
    """A run with nothing in it, and what ``changes`` gives."""
    bare: dict[str, Any] = {
        "config": {},
        "events": [],
        "proposals": [],
        "examples": [],
        **dict.fromkeys(("record", "results", "optimized", "unfinished", "probe", "plan")),
    }
    return RunFiles(folder, **{**bare, **changes})


def event(**row: Any) -> Event:
    """An event of the journal, from its line."""
    known = from_json(json.loads(json.dumps(row)))
    assert known is not None
    return known
