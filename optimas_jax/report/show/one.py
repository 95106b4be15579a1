"""One run in the terminal: a short form of its page."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, Group, RenderableType

from optimas_jax.report.look.first import look_first, shown_first
from optimas_jax.report.page.sections.bill import bill
from optimas_jax.report.page.sections.changes import changes
from optimas_jax.report.page.sections.flips import Flip, flips
from optimas_jax.report.page.sections.head import head
from optimas_jax.report.page.sections.proposals import proposals
from optimas_jax.report.page.text import count, counted, dollars, interval, number, signed
from optimas_jax.report.run_files import RunFiles
from optimas_jax.report.show.lines import items, line, section, table

_FLIPS = 5  # examples that are shown of those that became worse, and of those that became better
_PROPOSALS = 20


def show_run(run: RunFiles, console: Console, *, running: bool = False) -> None:
    """Prints a run: head, look here first, what changed, proposals, examples that flipped, bill.

    Args:
      running: whether a command is working in its folder.
    """
    for part in (_head(run, running), _look(run), _changes(run), _proposals(run), _flips(run), _bill(run)):
        console.print(part)


def _head(run: RunFiles, running: bool) -> RenderableType:
    top = head(run, running=running)
    rows = [line(f"{top.name}: {top.state}", style="bold")]
    rows += [line(part) for part in (", ".join(top.about), top.why) if part]
    if top.score:
        rows += [line(f"{top.score.what}: {number(top.score.before)} to {number(top.score.after)}")]
        rows += [line(top.score.sentence)]
    if top.better is not None:
        rows.append(line(f"{count(top.better)} better, {count(top.worse)} worse, {count(top.same)} the same"))
    rows.append(line(f"{top.confirmed[0]}: {top.confirmed[1]}"))
    rows.append(line(f"{count(top.kept)} kept of {count(top.tested)} tested; {counted(top.proposed, 'proposal')}"))
    return Group(*rows)


def _look(run: RunFiles) -> RenderableType:
    shown, more = shown_first(look_first(run))
    if not shown:
        return section("Look here first", line("No rule found anything that stands out."))
    rest = [line(f"and {more} more, which the page has", style="dim")] if more else []
    rows = [(f"{number}.", line(finding.sentence, 800)) for number, finding in enumerate(shown, start=1)]
    return section("Look here first", items(rows, "yellow"), *rest)


def _changes(run: RunFiles) -> RenderableType:
    accepted = changes(run)
    parts: list[RenderableType] = []
    for change in accepted.shown:
        undone = "" if change.kept else " (undone: not confirmed)"
        parts.append(line(f"{change.component}: {change.value.summary}{undone}", style="bold"))
        gains = [f"{gain.where} {signed(gain.gain)} {interval(gain.bounds)}" for gain in change.brought]
        rows = [("gain", "; ".join(gains))]
        if change.value.text:
            rows.append(("text", "".join(piece.text for piece in change.value.text if piece.kind != "old")))
        for demo in change.value.demos[:4]:
            rows.append((demo.state, "; ".join(f"{name}: {words}" for name, words in (*demo.inputs, *demo.outputs))))
        rows += [(name, f"{old} to {new}" if old else new) for name, old, new in change.value.settings if old != new]
        parts.append(items(rows, "dim"))
    if accepted.left_out:
        parts.append(line(f"and {counted(accepted.left_out, 'later change')}"))
    return section("What changed", *(parts or [line("Nothing.")]))


def _proposals(run: RunFiles) -> RenderableType:
    shown = proposals(run)
    tested = [row for row in shown.rows if row.measured is not None]
    words = ", ".join(f"{amount} {verdict}" for verdict, amount in shown.verdicts.items())
    rows = [
        (f"{row.iteration}", line(f"{row.component}, {row.optimiser}: {row.verdict}; {row.reason}"))
        for row in (tested or shown.rows)[:_PROPOSALS]
    ]
    more = len(shown.rows) - len(rows)
    rest = [line(f"and {counted(more, 'other')}, which the page has", style="dim")] if more > 0 else []
    return section(f"Proposals: {shown.total}{f' ({words})' if words else ''}", items(rows, "dim"), *rest)


def _flips(run: RunFiles) -> RenderableType:
    if not run.examples:
        return section("Examples that flipped", line("Nothing was evaluated yet."))
    flipped = flips(run)
    parts: list[RenderableType] = [line(f"{flipped.worse} worse, {flipped.better} better, {flipped.same} the same")]
    for way in ("worse", "better"):
        shown = [flip for flip in flipped.shown if flip.way == way][:_FLIPS]
        parts += [part for flip in shown for part in _flip(flip)]
    return section("Examples that flipped", *parts)


def _flip(flip: Flip) -> Iterator[RenderableType]:
    style = "red" if flip.way == "worse" else "green"
    yield line(f"{flip.way}: {number(flip.before, 2)} to {number(flip.after, 2)}", style=style)
    rows = [("asked", flip.asked), ("gold", flip.gold), ("before", flip.outputs_before), ("after", flip.outputs_after)]
    yield items([(name, line(text, 160)) for name, text in rows], "dim")


def _bill(run: RunFiles) -> RenderableType:
    top, costs = head(run), bill(run)
    parts: list[RenderableType] = [line(", ".join(filter(None, [dollars(top.dollars), top.took])))]
    if top.uncertain:
        parts.append(line(top.uncertain))
    if costs.steps:
        rows = [(name, *(cell.took for cell in cells)) for name, cells in costs.steps]
        parts.append(table(("step", "calls", "tokens", "dollars", "seconds"), rows))
    return section("Bill", *parts)
