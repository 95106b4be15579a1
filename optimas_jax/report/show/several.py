"""Several runs in the terminal."""

from __future__ import annotations

from rich.console import Console, RenderableType

from optimas_jax.report.page.sections.flips import in_short
from optimas_jax.report.page.sections.values import in_words
from optimas_jax.report.page.text import count, dollars, duration, number
from optimas_jax.report.show.compare import Comparison, Flip, Pair
from optimas_jax.report.show.lines import items, line, section, table

_FLIPS = 20  # examples that are shown of a pair
_MOST = 600  # characters of a prompt that are shown


def show_runs(found: Comparison, console: Console) -> None:
    """Prints a comparison: runs, settings that differ, scores, prompts, examples that flip, bills."""
    console.print(items([(shown.letter, shown.name) for shown in found.runs], "bold"))
    for note in found.notes:
        console.print(line(note, 600, style="yellow"))
    console.print(_settings(found))
    console.print(_starts(found))
    for pair in found.pairs:
        console.print(_pair(pair))
    console.print(_values(found))
    rows = [
        (shown.letter, dollars(bill.dollars), count(bill.tokens), count(bill.calls), duration(bill.seconds))
        for shown, bill in zip(found.runs, found.bills, strict=True)
    ]
    console.print(section("Bill", table(("run", "dollars", "tokens", "completions", "time"), rows)))


def _settings(comparison: Comparison) -> RenderableType:
    if not comparison.settings:
        return section("Settings that differ", line("None: the configurations are the same."))
    parts: list[RenderableType] = []
    for setting in comparison.settings:
        parts.append(line(setting.name))
        rows = zip(comparison.runs, setting.values, strict=True)
        parts.append(items([(f"  {shown.letter}", value) for shown, value in rows], "dim"))
    return section(f"Settings that differ: {len(comparison.settings)}", *parts)


def _starts(comparison: Comparison) -> RenderableType:
    parts: list[RenderableType] = []
    for start in comparison.starts:
        score = "" if start.before is None else f"{number(start.before)} to {number(start.after)}, {start.what}. "
        flips = "" if start.before is None else f" {start.better} better, {start.worse} worse."
        parts.append(items([(start.letter, line(f"{score}{start.sentence}{flips}"))], "bold"))
    return section("Each against its own start", *parts)


def _pair(pair: Pair) -> RenderableType:
    parts: list[RenderableType] = [line(pair.sentence, 600)]
    if pair.shared:
        parts.append(line(f"{pair.better} better in {pair.other}, {pair.worse} worse, {pair.same} the same"))
    for flip in pair.flips[:_FLIPS]:
        parts.append(_flip(flip, pair))
    if len(pair.flips) > _FLIPS:
        parts.append(line(f"and {len(pair.flips) - _FLIPS} more that flip, which the page has", style="dim"))
    return section(f"{pair.other} against {pair.first}", *parts)


def _flip(flip: Flip, pair: Pair) -> RenderableType:
    row = flip.row
    sides = {pair.first: row["before"], pair.other: row["after"]}
    answers = [
        (letter, line(f"{number(side['score'], 2)}  {in_short(side['runs'][0]['outputs'], 160)}"))
        for letter, side in sides.items()
    ]
    rows = [(row["id"], in_short(row["inputs"], 160)), ("  gold", in_short(row["gold"], 120)), *answers]
    return items(rows, "red" if flip.difference < 0 else "green")


def _values(comparison: Comparison) -> RenderableType:
    parts: list[RenderableType] = []
    for value in comparison.values:
        parts.append(line(value.component, style="bold"))
        rows = [
            (shown.letter, line("not known" if final is None else in_words(final), _MOST))
            for shown, final in zip(comparison.runs, value.values, strict=True)
        ]
        parts.append(items(rows, "dim"))
    if comparison.same_values:
        parts.append(line(f"The same in all: {', '.join(comparison.same_values)}.", style="dim"))
    return section("What each ends with", *(parts or [line("No values are known.")]))
