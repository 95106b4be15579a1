"""A check in Markdown: the table, the verdict, what differs, and the examples that changed most."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from optimas_jax.core.types import thaw
from optimas_jax.core.values import (
    Adapter,
    Choice,
    Configuration,
    Demo,
    Hyperparameters,
    PerInstance,
    Prompt,
    Value,
    value_digest,
)
from optimas_jax.saved.check import Check, Measured, Move
from optimas_jax.saved.optimized import failure_of, plain_outputs

MOST_EXAMPLES = 10
_WIDEST = 120  # characters of an input or an output in a table


def check_page(check: Check) -> str:
    """Markdown of a check."""
    return "\n".join([f"# {check.new.name} against {check.old.name}", "", *_table(check), *_details(check)])


def move_page(move: Move) -> str:
    """Markdown of a best on two models."""
    check = move.check
    lines = [
        f"# Default and best on {len(check.examples)} examples, {check.metric}",
        "",
        "| model | default | best | gain | cost of the best |",
        "| --- | --- | --- | --- | --- |",
    ]
    for (model, default, best), (_, gain) in zip(move.rows, move.gains, strict=True):
        change = _interval(gain.mean, gain.ci95, sign="+")
        lines.append(f"| {model} | {_interval(*default.mean)} | {_interval(*best.mean)} | {change} | {best.cost} |")
    lines += ["", f"On {move.rows[-1][0]}: {_verdict(check)}", *_details(check)]
    return "\n".join(lines)


def _table(check: Check) -> list[str]:
    decision = check.decision
    lines = [
        f"| {len(check.examples)} examples | {check.metric} | failed | cost |",
        "| --- | --- | ---: | --- |",
        *(
            f"| {measured.name} | {_interval(*measured.mean)} | {_failed(measured)} | {measured.cost} |"
            for measured in (check.new, check.old)
        ),
        f"| gain | {_interval(decision.gain.mean, decision.gain.ci95, sign='+')} | | {_cost(check)} |",
    ]
    return [*lines, "", _verdict(check)]


def _verdict(check: Check) -> str:
    decision, gate = check.decision, check.gate
    tested = f"two equal ones look as bad with P = {decision.p_worse:.3g}; level {gate.level:g}"
    if decision.p_enough is not None:
        known = f"with P = {decision.p_enough:.3g} a gain of just {gate.min_gain:+g} looks as good"
        tested = f"{known}; level {gate.level:g}"
    if decision.passed:
        return f"**Passes** ({tested})."
    return f"**Fails**: {'; '.join(decision.reasons)} ({tested})."


def _details(check: Check) -> list[str]:
    """Sections on what differs: values, settings, edits, and the examples whose scores changed."""
    lines = ["", "## What differs", ""]
    difference = configuration_diff(check.old.configuration, check.new.configuration)
    lines += ["```diff", *difference, "```"] if difference else ["The configurations are alike."]
    if check.settings:
        lines += ["", "Settings of the runs:", "", *(f"- `{setting}`" for setting in check.settings)]
    if check.edited:
        lines += [
            "",
            "Edited since the run; here the program ran as it is now:",
            "",
            *(f"- {edit}" for edit in check.edited),
        ]
    flipped = sorted(
        (index for index in range(len(check.examples)) if check.new.scores[index] != check.old.scores[index]),
        key=lambda index: -abs(check.new.scores[index] - check.old.scores[index]),
    )
    worse = sum(check.new.scores[index] < check.old.scores[index] for index in flipped)
    lines += ["", "## Examples", "", f"{worse} are worse now, {len(flipped) - worse} better."]
    if flipped:
        lines += ["", "| id | inputs | old | new | score |", "| --- | --- | --- | --- | --- |"]
    # Worse examples first: a reader has to judge these.
    shown = sorted(flipped[:MOST_EXAMPLES], key=lambda index: check.new.scores[index] - check.old.scores[index])
    return [*lines, *(_example(check, index) for index in shown), ""]


def _example(check: Check, index: int) -> str:
    example, old, new = check.examples[index], check.old.traces[index], check.new.traces[index]
    answers = [
        failure_of(trace) or str(trace.outcome) if not trace.outputs else plain_outputs(trace) for trace in (old, new)
    ]
    cells = [example.id, thaw(example.inputs), *answers, f"{old.score:.3f} -> {new.score:.3f}"]
    return f"| {' | '.join(_cell(cell) for cell in cells)} |"


def configuration_diff(old: Configuration, new: Configuration) -> list[str]:
    """Lines of a unified diff of every value that differs, as a person reads it."""
    lines: list[str] = []
    for name in dict.fromkeys([*old, *new]):
        before, after = ([] if value is None else describe(value) for value in (old.get(name), new.get(name)))
        lines += difflib.unified_diff(before, after, f"old/{name}", f"new/{name}", lineterm="")
    return lines


def describe(value: Value) -> list[str]:
    """Lines of a value."""
    match value:
        case Prompt(instruction, demos):
            return [*instruction.splitlines(), *(line for demo in demos for line in _demo(demo))]
        case Hyperparameters(settings):
            return [f"{name} = {setting!r}" for name, setting in settings.items()]
        case Choice(name):
            return [name]
        case Adapter(name):
            return [f"adapter {name or 'none'}"]
        case PerInstance(values, reward, samples, mode, _):
            head = f"{mode} of {samples} of each, by the local reward {reward}"
            return [head, *(f"  {line}" for inner in values for line in describe(inner))]
    return [value_digest(value)]


def _demo(demo: Demo) -> list[str]:
    fields: Mapping[str, Any] = {**demo.inputs, **demo.outputs}
    return ["demonstration:", *(f"  {name}: {_text(value)}" for name, value in fields.items())]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(thaw(value), ensure_ascii=False)


def _cell(value: Any) -> str:
    """A value in a cell of a table: one line, cut where it is long."""
    text = " ".join(_text(value).split())
    return (text if len(text) <= _WIDEST else f"{text[: _WIDEST - 1]}…").replace("|", "\\|")


def _interval(mean: float, ci95: Sequence[float], sign: str = "") -> str:
    low, high = (format(bound, f"{sign}.3f") for bound in ci95)
    return f"{format(mean, f'{sign}.3f')} [{low}, {high}]"


def _failed(measured: Measured) -> int:
    return sum(not trace.outputs for trace in measured.traces)


def _cost(check: Check) -> str:
    ratio, limit = check.decision.cost, check.gate.max_cost
    allowed = "" if limit is None else f", allowed {limit:g}"
    return "" if ratio is None else f"{ratio:.2f} times the {check.decision.priced} of the old one{allowed}"
