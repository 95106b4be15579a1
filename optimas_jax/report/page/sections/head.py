"""The head of a run's page: scores, examples, confirmation, changes, bill, state."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from optimas_jax.core.folder.events import Confirmation, Event
from optimas_jax.core.folder.search_events import Curve, Pick, SearchEnd
from optimas_jax.report.page import text
from optimas_jax.report.page.svg import element, interval_bar, picture, span_of
from optimas_jax.report.run_files import RunFiles

_WORDS = {"KeyboardInterrupt": "it was interrupted", "Terminated": "it was terminated"}  # reasons of an end
_FEWEST = 6  # examples: with fewer no two-sided sign test is below 5 %


@dataclasses.dataclass(frozen=True)
class Score:
    """A score before and after.

    Attributes:
      what: name of the score, and the examples it was measured on.
      before, after: None where it is not known.
      gain, bounds: mean paired difference, and its interval.
      sentence: conclusion that the numbers support.
      bar: picture of the gain.
    """

    what: str
    before: Any
    after: Any
    gain: Any
    bounds: Any
    sentence: str
    bar: Markup = Markup("")


@dataclasses.dataclass(frozen=True)
class Head:
    """What the head shows.

    Attributes:
      name: of the run.
      about: models, examples, seed, date.
      state: ``running``, ``finished``, ``stopped``, ``not finished``.
      why: a sentence on the state.
      score: None until something was measured.
      better, worse, same: examples; None without an evaluation.
      split: picture of these counts.
      confirmed: word and sentence.
      kept, tested, proposed: numbers of proposals.
      dollars: what was paid.
      took: tokens, completions and time of the first execution as text, as far as they are known.
      uncertain: how much of the bill is a worst case; "" for nothing.
    """

    name: str
    about: Sequence[str]
    state: str
    why: str
    score: Score | None
    better: int | None
    worse: int | None
    same: int | None
    split: Markup
    confirmed: tuple[str, str]
    kept: int
    tested: int
    proposed: int
    dollars: Any
    took: str
    uncertain: str


def head(run: RunFiles, *, running: bool = False) -> Head:
    """The head of a run.

    Args:
      running: whether a command is working in the folder.
    """
    better, worse, same = changed_examples(run.results) if run.results else (None, None, None)
    state, why = state_of(run, running=running)
    tested = [row for row in run.proposals if row.get("gate")]
    bill = bill_of(run)
    return Head(
        name=title_of(run),
        about=_about(run),
        state=state,
        why=why,
        score=_score(run),
        better=better,
        worse=worse,
        same=same,
        split=_split_bar(better or 0, same or 0, worse or 0),
        confirmed=_confirmed(run),
        kept=sum(row.get("verdict") == "accepted" for row in run.proposals),
        tested=len(tested),
        proposed=len(run.proposals),
        **bill,
    )


def title_of(run: RunFiles) -> str:
    """Benchmark and variant, or the folder's name."""
    source = {**run.config, **(run.results or {})}
    name = str(source.get("benchmark") or run.folder.resolve().name)
    name = name.rsplit("/", 1)[-1].removesuffix(".py") if "/" in name else name
    return f"{name}:{source['variant']}" if source.get("variant") else name


def changed_examples(results: Mapping[str, Any]) -> tuple[int, int, int]:
    """Numbers of examples whose score rose, fell, stayed."""
    pairs = list(zip(results["baseline"]["scores"], results["optimized"]["scores"], strict=True))
    better, worse = sum(new > old for old, new in pairs), sum(new < old for old, new in pairs)
    return better, worse, len(pairs) - better - worse


def state_of(run: RunFiles, *, running: bool) -> tuple[str, str]:
    """The state of a run in a word, and a sentence on it."""
    if running:
        return "running", f"{_progress(run)} This page is as of the last finished iteration: reload it for news."
    if run.results is not None:
        return "finished", _ended(run)
    if run.unfinished is not None:
        reason = str(run.unfinished["reason"])
        return "stopped", f"It stopped before its results: {_WORDS.get(reason, reason)}. The same command goes on."
    if run.record is None and not run.events:
        return "not begun", "No command has worked in this folder yet."
    return "not finished", f"{_progress(run)} There are no results yet. The same command goes on where it ended."


def _ended(run: RunFiles) -> str:
    end = last(run.events, SearchEnd)
    return f"The search ended after {text.counted(end.iterations, 'iteration')}: {end.reason}." if end else ""


def _progress(run: RunFiles) -> str:
    if ended := _ended(run):
        return f"{ended} The test is to come."
    pick = last(run.events, Pick)
    if pick is None:
        return "The search has not begun."
    planned = (run.config.get("optimize") or {}).get("iterations")
    of = f" of {planned}" if text.is_number(planned) else ""
    return f"The search is in iteration {pick.iteration + 1}{of}, at {text.clip(pick.component, 60)}."


def last(events: Sequence[Event], kind: type[Any]) -> Any:
    """The last event of a kind, or None."""
    return next((event for event in reversed(events) if isinstance(event, kind)), None)


def _about(run: RunFiles) -> list[str]:
    config, record = run.config, run.record or {}
    model = ((config.get("system") or {}).get("language_model") or {}).get("model")
    data = config.get("data") or {}
    sizes = [f"{text.count(data[split])} {split}" for split in ("train", "val", "confirm", "test") if data.get(split)]
    parts = [
        str(model or ""),
        ", ".join(sizes) + " examples" * bool(sizes),
        f"seed {config['seed']}" if "seed" in config else "",
        str(record.get("started") or "")[:10],
    ]
    return [text.name(part) for part in parts if part]


def _score(run: RunFiles) -> Score | None:
    if (results := run.results) is not None:
        before, after, gain = results["baseline"]["mean"], results["optimized"]["mean"], results["gain"]
        what = f"{text.clip(results['metric'], 60)} on {text.counted(results['n'], results['split'] + ' example')}"
        bounds = gain["ci95"] if results["n"] >= _FEWEST else None
        sentence = gain_sentence(gain, results["n"])
        bar = interval_bar(gain["mean"], bounds, span_of([gain["mean"], *(bounds or ())]), width=220, words=sentence)
        return Score(what, before, after, gain["mean"], bounds, sentence, bar)
    curve = [event for event in run.events if isinstance(event, Curve)]
    if not curve:
        return None
    before, after = curve[0].val_score, curve[-1].val_score
    sentence = "On the examples that chose the changes, so that it is a little high; the test comes at the end."
    return Score("score on validation examples", before, after, None, None, sentence)


def gain_sentence(gain: Mapping[str, Any], n: int) -> str:
    """The conclusion from a paired difference, no more than its interval supports."""
    mean, bounds = gain.get("mean"), gain.get("ci95")
    if n < _FEWEST or not text.is_interval(bounds):
        return f"{text.counted(n, 'example')}: {text.TOO_FEW}."
    low, high = bounds
    if mean == low == high == 0:
        return "Nothing changed on any example."
    shown = f"{text.signed(mean)} {text.interval(bounds)}"
    if low > 0:
        return f"Better: {shown}."
    return f"Worse: {shown}." if high < 0 else f"No difference is shown: {shown}."


def _confirmed(run: RunFiles) -> tuple[str, str]:
    event = last(run.events, Confirmation)
    confirmed = (run.results or {}).get("confirmed") or (run.optimized or {}).get("confirmed")
    if confirmed is None and event is not None:
        confirmed = {"n": event.n, "changes": event.changes, "verdict": event.verdict}
    if confirmed is None:
        return (
            "not tested",
            "No examples were kept for a confirmation." if run.results else "It comes after the search.",
        )
    word = "confirmed" if confirmed["changes"] else "not confirmed"
    if not confirmed["changes"] and confirmed["changes"] is not None:
        word = "nothing to confirm"
    where = f"On {text.counted(confirmed['n'], 'example')} that no gate has seen: " if confirmed["n"] else ""
    return word, f"{where}{confirmed['verdict']}"


def bill_of(run: RunFiles) -> dict[str, Any]:
    """Costs and time of a run: from ``run.json``, before the end of the run also from the journal, in older folders
    from the results."""
    record, results, spent = run.record or {}, run.results or {}, last(run.events, Curve)
    worst = record.get("uncertain") or {}
    uncertain = ""
    if worst.get("calls"):
        uncertain = (
            f"Of this {text.counted(worst['calls'], 'request')} are at their worst case, {text.count(worst['tokens'])} "
            "tokens: they had no answer after the model may have worked on them, or one that does not say what it used."
        )
    dollars, tokens = record.get("usd"), record.get("tokens")
    if not record.get("finished") and spent is not None:
        dollars, tokens = max(dollars or 0, spent.spent.usd), max(tokens or 0, spent.spent.tokens)
    calls = record.get("paid_calls", results.get("paid_calls"))
    seconds = record.get("seconds", results.get("wall_seconds"))
    took = [
        f"{text.count(tokens)} tokens" if tokens is not None else "",
        f"{text.count(calls)} completions paid for" if calls or results else "",
        text.duration(seconds) if seconds else "",
    ]
    return {"dollars": dollars, "took": ", ".join(filter(None, took)), "uncertain": uncertain}


def _split_bar(better: int, same: int, worse: int) -> Markup:
    total = better + same + worse
    if not total:
        return Markup("")
    parts, x = [], 0.0
    for amount, kind in ((better, "good"), (same, "even"), (worse, "bad")):
        width = 200 * amount / total
        parts.append(element("rect", class_=f"fill {kind}", x=x, y=0, width=max(0.0, width - 1.5), height=8, rx=2))
        x += width
    words = f"{better} better, {same} the same, {worse} worse"
    return picture(words, "", 200, 8, *parts, class_="split", stretch=True)
