"""Lines, tables and the live table: whatever a text holds, nothing wraps, and figures stay."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from optimas_jax.core.folder.live import Status
from optimas_jax.core.progress import Bar, Bars
from optimas_jax.core.usage import Usage
from optimas_jax.report.console import ConsoleProgress
from optimas_jax.report.live.grids import fitted
from optimas_jax.report.live.text import fit, plain, styled
from optimas_jax.report.live.view import amount, clock, live_table

WIDTHS = (1, 5, 20, 39, 60, 100, 200)
HOSTILE = [
    "[red]not red[/red]",
    "[/closed",
    "a\nb\rc\x1b[2Jd\x00\x07",
    "line\u2028separator\u2029paragraph\x85next",
    "\u202eright to left\u202c \u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \U0001f44d\U0001f3fd \u2764\ufe0f",
    "\u4e2d\u6587\u5b57" * 40,
    "z\u0300\u0301\u0302\u0303\u0304\u0305\u0306algo",
    "\ud800 lone",
    "x" * 100_000,
    "0123456789" * 1_000,
    "{{ x }} <script>alert(1)</script> 'q' \"q\"",
    "",
    "   ",
]
TEXT = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=80))


def drawn(view, width):
    """Lines of what is shown on a terminal of so many columns."""
    sink = io.StringIO()
    console = Console(file=sink, width=width, force_terminal=True, color_system=None, markup=False, emoji=False)
    console.print(view, soft_wrap=False)
    return sink.getvalue().encode("utf-8").decode().splitlines()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("text", HOSTILE)
def test_a_line_is_one_line_and_never_wider(text, width):
    line = fit(plain(text), width)
    assert cell_len(line) <= width and line.isprintable() and len(line.splitlines()) <= 1
    assert drawn(styled(line), width + 1) in ([line.rstrip()], [line], [""], [])


def test_figures_of_a_decision_stay_and_words_are_cut():
    line = "  accepted: a-kind-with-a-long-name, expected gain +0.123, validation gain +0.050 (p = 0.003, n = 32)"
    short = fit(line, 60)
    assert cell_len(short) <= 60 and all(figure in short for figure in ("+0.123", "+0.050", "0.003", "32"))
    assert short.startswith("  accepted")
    assert fit(line, 200) == line
    named = fit(f"  {'name' * 500}: validation +0.250", 60)
    assert named.endswith(" +0.250") and "…" in named
    assert fit("model-3.1-8b scores 0.5", 14).endswith("0.5")
    assert fit("results of the run; runs/hotpotqa-embedded-0/results.json", 30).endswith("/results.json")


def test_brackets_are_text_and_flags_are_letters():
    assert plain("[bold]x[/bold]") == "[bold]x[/bold]"
    assert plain("\U0001f1e9\U0001f1ea") == "DE"
    assert plain("  a \n b") == "  a b"
    assert styled("[red]x").plain == "[red]x"
    assert str(styled("  warning: x").spans[0].style) == "yellow"


@given(st.lists(st.tuples(TEXT, st.floats(-1e6, 1e6)), max_size=4), TEXT, st.sampled_from([10, 20, 60, 100, 200]), TEXT)
@settings(max_examples=12, deadline=None)
def test_a_table_never_wraps_and_its_figures_stay(rows, title, width, header):
    table = Table(title=title, caption=title)
    table.add_column(header)
    for name in ("mean", "95 % interval", "p"):
        table.add_column(name, justify="right")
    for text, number in rows:
        table.add_row(text, f"{number:.3f}", "[0.100, 0.200]", "0.05")
    lines = drawn(fitted(table, width), width)
    assert all(cell_len(line) <= width for line in lines)
    if width >= 60:
        shown = "\n".join(lines)
        assert all(f"{number:.3f}" in shown for _, number in rows) and shown.count("[0.100, 0.200]") >= len(rows)


def test_rows_of_a_table_that_is_too_wide_become_lists():
    table = Table(title="Alignment")
    for name in ("component", "local reward", "95 % interval", "pairs"):
        table.add_column(name, justify="left" if name == "component" else "right")
    table.add_row("drafter", "0.710", "[0.600, 0.800]", "120")
    assert drawn(fitted(table, 32), 32) == [
        "Alignment",
        "drafter",
        "  local reward   0.710",
        "  95 % interval  [0.600, 0.800]",
        "  pairs          120",
    ]


def status(**fields):
    known = {
        "id": "0",
        "title": "rag:own",
        "step": "optimize: gate",
        "iteration": 2,
        "iterations": 4,
        "component": "drafter",
        "proposal": "opro: Be short.",
        "score": 0.5,
        "start": 0.25,
        "spent": Usage(calls=10, prompt_tokens=12_000, completion_tokens=345, usd=1.5),
        "seconds": 3_725.0,
        "left": 90.0,
    }
    return Status(**{**known, **fields})


def test_the_live_table_says_what_the_run_does():
    bars = (Bar("gate", 3, 8, 6.0),)
    wide = drawn(live_table(status(), bars, 99), 100)
    assert wide[0].startswith("rag:own: optimize 2/4, gate") and wide[0].endswith("1:02:05")
    for word in ("drafter", "opro: Be short.", "0.500 (+0.250)", "$1.50, 12.3k tokens", "~1:30"):
        assert word in wide[2]
    assert wide[3].split()[0] == "gate" and "3/8" in wide[3] and wide[3].rstrip().endswith("~0:10")
    narrow = "\n".join(drawn(live_table(status(), bars, 59), 60))
    assert all(word in narrow for word in ("drafter", "opro: Be short.", "0.500 (+0.250)", "$1.50, 12.3k tokens"))
    assert "paused" in drawn(live_table(status(state="paused"), (), 99), 100)[0]


@given(TEXT, TEXT, TEXT, st.sampled_from([1, 10, 20, 59, 60, 99, 100, 199]), st.integers(0, 12))
@settings(max_examples=15, deadline=None)
def test_the_live_table_never_wraps(component, proposal, label, width, bars):
    view = live_table(
        status(component=component, proposal=proposal, title=label),
        [Bar(label, index, 10**index, 1e6) for index in range(bars)],
        width,
    )
    lines = drawn(view, width + 1)
    assert all(cell_len(line) <= width for line in lines) and len(lines) <= 10
    if width >= 59:
        assert any("0.500 (+0.250)" in line for line in lines)


def test_bars_are_nested_and_parallel():
    bars = Bars()
    with bars.bar("outer", 2) as outer, bars.bar("inner", 3) as inner:
        outer()
        inner()
        inner()
        assert [(bar.label, bar.done, bar.total) for bar in bars.now] == [("outer", 1, 2), ("inner", 2, 3)]
    assert bars.now == ()
    inner()  # of a thread that ends late


def test_amounts_and_times_are_short():
    assert [amount(n) for n in (0, 950, 12_345, 4_560_000, 99_999, 2.5e9)] == [
        "0",
        "950",
        "12.3k",
        "4.56M",
        "100.0k",
        "2.50G",
    ]
    assert [clock(s) for s in (-1, 5, 125, 3_725)] == ["0:00", "0:05", "2:05", "1:02:05"]


def test_without_a_terminal_there_are_the_lines_alone(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    progress = ConsoleProgress()
    progress.line("[bold]one[/bold]\nand \x1b[31mmore")
    with progress.bar("steps", 2) as advance:
        advance()
        progress.show(status())
    progress.show(None)
    assert capsys.readouterr().out == "[bold]one[/bold] and �[31mmore\n"


def test_a_log_shows_now_and_then_that_the_run_lives(monkeypatch, capsys):
    monkeypatch.setattr("optimas_jax.report.console._ALIVE_SECONDS", 0.0)
    progress = ConsoleProgress()
    progress.show(status())
    assert capsys.readouterr().out == (
        "  ... rag:own: optimize 2/4, gate, score 0.500 (+0.250), $1.50, 12.3k tokens, ~1:30 left\n"
    )
    with progress.bar("steps", 2) as advance:
        advance()
    assert "steps 1/2" in capsys.readouterr().out


def test_a_console_that_cannot_write_a_letter_writes_another(monkeypatch):
    sink = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    ConsoleProgress(Console(file=sink)).line("naïve …")
    sink.flush()
    assert sink.buffer.getvalue() == b"na?ve ?\n"
