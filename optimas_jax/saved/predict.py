"""Predictions: a saved program on rows, without metric and gold."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optimas_jax.core.progress import Progress
from optimas_jax.core.text.secrets import redact
from optimas_jax.core.types import Example, Outcome, Trace, freeze, thaw, valid_text
from optimas_jax.llm.tapes.tape import Tape
from optimas_jax.saved.optimized import Optimized, failure_of, plain_outputs
from optimas_jax.saved.runs import CONCURRENCY, run_examples

TAPE_SUFFIX = ".tape.sqlite"


def predict(
    optimized: Optimized,
    rows: Sequence[Mapping[str, Any]],
    output: Path,
    progress: Progress,
    *,
    concurrency: int = CONCURRENCY,
) -> list[dict[str, Any]]:
    """Runs a program on rows, and writes one line of JSON for each: ``id``, ``inputs``, ``outputs``, ``outcome``, and
    ``detail`` of a failed row. A tape beside the file lets the same call resume, or pay nothing.

    Args:
      rows: have a column for every input; ``id`` names a row.
      output: JSONL file.

    Returns:
      The rows that were written.

    Raises:
      ValueError: a column is missing, before anything is paid for.
      StopRun: models do not answer.
    """
    columns = optimized.inputs.columns(rows[0], optimized.name)
    examples = [
        Example(_id_of(row, number), freeze({name: row[name] for name in columns}), freeze({}), "")
        for number, row in enumerate(rows)
    ]
    output.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(Tape(output.with_name(output.name + TAPE_SUFFIX))) as tape:
        traces, _ = run_examples(
            optimized, examples, tape, progress, "rows", concurrency=concurrency, stop_at_bugs=False
        )
    predictions = [_prediction(example, trace) for example, trace in zip(examples, traces, strict=True)]
    partial = output.with_name(output.name + ".partial")
    lines = [json.dumps(prediction, ensure_ascii=False) + "\n" for prediction in predictions]
    partial.write_text("".join(lines), encoding="utf-8")
    partial.replace(output)
    return predictions


def _id_of(row: Mapping[str, Any], number: int) -> str:
    return f"row-{number}" if row.get("id") is None else str(row["id"])


def _prediction(example: Example, trace: Trace) -> dict[str, Any]:
    row = {"id": example.id, "inputs": thaw(example.inputs), "outputs": plain_outputs(trace)}
    if trace.outcome is Outcome.OK:
        return {**row, "outcome": "ok"}
    return {**row, "outcome": str(trace.outcome), "detail": valid_text(redact(failure_of(trace) or trace.feedback))}
