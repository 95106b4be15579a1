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


def large_run(examples: int = 1000, proposals: int = 200, components: int = 10) -> RunFiles:
    """A finished run as large as pages are to bear: long texts, most examples flipped."""
    names = [f"component_{number}" for number in range(components)]
    words = " ".join(f"word{number}" for number in range(60))

    def calls(index: int, after: bool) -> list[dict[str, Any]]:
        texts = [f"{words} {index} {'after' if after and number > 3 else 'before'}" for number in range(components)]
        return [
            call(name, {"question": f"Question {index}?", "text": texts[number - 1]}, {"text": texts[number]})
            for number, name in enumerate(names)
        ]

    rows = []
    for index in range(examples):
        before, after = (index % 7) / 7, (index % 5) / 5
        sides = {
            "before": side(before, {"answer": f"{words} before"}, calls(index, False)),
            "after": side(after, {"answer": f"{words} after"}, calls(index, True)),
        }
        question = {"question": f"Question {index}?"}
        rows.append({"id": f"row-{index}", "kind": f"kind {index % 6}", "inputs": question, "gold": question, **sides})
    usage = {"calls": 0, "prompt_tokens": 0, "completion_tokens": 0, "usd": 0.0, "seconds": 0.0, "system_runs": 0}
    usage |= {"component_calls": 0}
    events, made, accepted = [], [], []
    for index in range(proposals):
        name, kept = names[index % components], index % 20 == 0
        verdict = "accepted" if kept else "refused" if index % 2 else "not tested"
        value = {"type": "prompt", "instruction": f"{words} {index}\n" * 5, "demos": []}
        changes = {"component": name, "verdict": verdict, "text": value["instruction"], "value": value}
        made.append(proposal(index, **changes, **({} if verdict != "not tested" else {"gate": None})))
        gains = {"expected_gain": 0.1, "labelled_gain": None, "local_gain": 0.2, "val_gain": 0.05 - index / 1000}
        events.append(event(event="pick", iteration=index, component=name))
        gate = {"value": "v", "kind": "opro", "ci95": [-0.1, 0.2], "p_value": 0.1, "n": 32, "accepted": kept, **gains}
        events.append(event(event="gate", iteration=index, component=name, **gate))
        met = {"fresh_groups": 4, "fresh_pairs": index % 9, "pair_accuracy_before": 0.6, "reward": "r"}
        events.append(event(event="adaptation", trained=kept, **met))
        spent = {
            **usage,
            "prompt_tokens": 1000 * index,
            "usd": index / 10,
            "seconds": 3.0 * index,
            "system_runs": index,
        }
        events.append(event(event="curve", at="iteration", iteration=index, val_score=index / 300, **spent))
        if kept:
            accepted.append({"iteration": index, "component": name, "kind": "opro", "value": value, "val_gain": 0.1})
    found = results(rows, accepted=accepted)
    return run_files(examples=rows, proposals=made, events=events, results=found)
