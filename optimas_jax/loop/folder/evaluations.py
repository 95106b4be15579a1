"""Evaluations in a run folder: each has its own pair of files, which no other evaluation overwrites.

    evaluations/LABEL.jsonl    one row per example: its runs under the default and the optimised configuration
    evaluations/LABEL.json     results
    results.json               the same results, for the evaluation in ``config.json``

LABEL is the split, or ``SPLIT-2`` and so on for another evaluation of it: of another configuration or metric, with
other ``config.evaluate``, or on another number of examples because of another budget. A repetition finds its own files.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from optimas_jax.core.schema import to_dict
from optimas_jax.core.types import Call, Example, Trace
from optimas_jax.loop.journal import RESULTS, RunFolder
from optimas_jax.loop.stage_configs import EvaluateConfig

EVALUATIONS = "evaluations"


@dataclasses.dataclass(frozen=True)
class Measured:
    """An evaluation of the optimised configuration beside the default one.

    Attributes:
      results: fields of ``results.json``.
      identity: data in which a repetition is equal (``save``).
      rows: one row for each example.
    """

    results: Mapping[str, Any]
    identity: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]


def is_own(folder: RunFolder, settings: EvaluateConfig) -> bool:
    """Whether an evaluation is the run's own, that is, the one in the settings of the folder's first command."""
    return folder.first.get("evaluate") == json.loads(json.dumps(to_dict(settings)))


def save(
    folder: RunFolder,
    split: str,
    identity: Mapping[str, Any],
    results: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    *,
    own: bool,
) -> str:
    """Writes an evaluation, unless it is a repetition; returns its label.

    Args:
      identity: data in which a repetition is equal.
      own: whether it is the run's own (``is_own``); then its results are also written to ``results.json``.
    """
    label, saved = _find(folder, split, identity)
    data = {"label": label, "evaluation": identity, **results} if saved is None else saved
    if saved is None:
        folder.write_lines(f"{EVALUATIONS}/{label}.jsonl", rows)
        folder.write(f"{EVALUATIONS}/{label}.json", data)  # last: it shows that both files are complete
    if own:
        folder.write(RESULTS, data)
    return label


def _find(folder: RunFolder, split: str, identity: Mapping[str, Any]) -> tuple[str, Any | None]:
    """The label of an evaluation, and the saved results if it is a repetition."""
    for number in itertools.count(1):
        label = split if number == 1 else f"{split}-{number}"
        saved = folder.read(f"{EVALUATIONS}/{label}.json")
        if saved is None or saved["evaluation"] == json.loads(json.dumps(identity)):
            return label, saved
    raise AssertionError


def example_rows(
    examples: Sequence[Example],
    before: Sequence[Sequence[Trace]],
    after: Sequence[Sequence[Trace]],
) -> list[dict[str, Any]]:
    """One row per example.

    Args:
      before, after: [repeats][examples] runs under the default and the optimised configuration.
    """
    return [
        {
            "id": example.id,
            "kind": example.kind,
            "inputs": example.inputs,
            "gold": example.gold,
            "before": _side([traces[index] for traces in before]),
            "after": _side([traces[index] for traces in after]),
        }
        for index, example in enumerate(examples)
    ]


def _side(traces: Sequence[Trace]) -> dict[str, Any]:
    """The runs of one example under one configuration, with their mean score."""
    return {"score": sum(trace.score for trace in traces) / len(traces), "runs": [_run(trace) for trace in traces]}


def _run(trace: Trace) -> dict[str, Any]:
    return {
        "seed": trace.seed,
        "outputs": trace.outputs,
        "score": trace.score,
        "feedback": trace.feedback,
        "parts": trace.parts,
        "outcome": str(trace.outcome),
        "calls": [_call(call) for call in trace.calls],
    }


def _call(call: Call) -> dict[str, Any]:
    return {
        "component": call.component,
        "occurrence": call.occurrence,
        "inputs": call.inputs,
        "outputs": call.outputs,
        "outcome": str(call.outcome),
        "detail": call.detail,
        **({"reasoning": call.reasoning} if call.reasoning else {}),
    }
