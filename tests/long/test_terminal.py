"""What a terminal shows of a run, by tmux: one table in place, decisions above it, and nothing that wraps."""

import contextlib
import re
import subprocess
import sys

import pytest
from runs import ROOT
from terminals import Terminal

pytestmark = pytest.mark.long
DECISIONS = ("optimize", "iteration 1/3", "  accepted", "  refused", "evaluate")


@contextlib.contextmanager
def terminal(width, **options):
    opened = Terminal(width, **options)
    try:
        yield opened
    finally:
        opened.close()


def ended(lines):
    return any(re.match(r"ended \d+", line) for line in lines)


def is_table(line):
    return re.search(r"^\S+: (collect|train|optimize|confirm|evaluate).* \d+:\d\d$", line) is not None


@pytest.mark.parametrize("width", [60, 100, 200])
def test_a_run_is_decisions_and_one_table_in_place(width, tmp_path):
    with terminal(width) as shown:
        shown.run("live_run.py", str(tmp_path / "run"), "0.2")
        during = shown.wait(lambda lines: any("iteration 2/3" in line for line in lines))
        assert len([line for line in during if is_table(line)]) == 1
        assert any(line.startswith("component") and "proposal" in line for line in during)
        assert not shown.wrapped()
        after = shown.wait(ended)
        assert not shown.wrapped()
        assert not [line for line in after if is_table(line) or "━━━  " in line]  # no bar is left behind
        text = "\n".join(after)
        assert all(word in text for word in DECISIONS) and "ended 0" in text
        [accepted] = [line for line in after if line.startswith("  accepted")]
        assert all(figure in accepted for figure in ("+0.462", "+0.393", "0.062", "8"))
        assert shown.cursor_is_shown()
        print(f"--- {width}", *during, f"--- {width}, at its end", *after, sep="\n")


def test_the_terminal_is_clean_after_ctrl_c_and_the_same_command_resumes(tmp_path):
    with terminal(80) as shown:
        shown.run("live_run.py", str(tmp_path / "run"), "0.2")
        shown.wait(lambda lines: any("iteration 1/3" in line for line in lines))
        shown.type("C-c")
        lines = shown.wait(ended)
        assert "stopped; the same command resumes" in lines and "ended 130" in lines
        assert not [line for line in lines if is_table(line)] and shown.cursor_is_shown()
        assert not (tmp_path / "run" / "live.json").exists()
        shown.type("clear", "Enter")
        shown.run("live_run.py", str(tmp_path / "run"), "0")
        shown.wait(lambda lines: "ended 0" in lines)


def test_the_table_follows_the_size_of_the_terminal(tmp_path):
    with terminal(160) as shown:
        shown.run("live_run.py", str(tmp_path / "run"), "0.3")
        shown.wait(lambda lines: any(is_table(line) for line in lines))
        for width in (100, 60, 45, 200):
            shown.resize(width)
            shown.wait(lambda lines, width=width: [len(one) for one in lines if is_table(one)] == [width - 1])
            if width < 160:  # tmux takes back from its history what has left the screen when it got narrower
                assert len([line for line in shown.screen() if line.startswith("component")]) == 1


@pytest.mark.parametrize("variables", [{"TERM": "dumb"}, {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}])
def test_a_terminal_without_a_cursor_gets_the_lines(variables, tmp_path):
    with terminal(100, variables=variables) as shown:
        shown.run("live_run.py", str(tmp_path / "run"), "0")
        lines = shown.wait(ended)
        assert "ended 0" in lines and not [line for line in lines if is_table(line) or "candidates" in line]


def test_without_colours_there_are_none(tmp_path):
    with terminal(100, variables={"NO_COLOR": "1"}) as shown:
        shown.run("live_run.py", str(tmp_path / "run"), "0.1")
        shown.wait(lambda lines: any(is_table(line) for line in lines))
        styled = shown._tmux("capture-pane", "-p", "-e")
        assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", styled)


def test_without_a_terminal_there_is_a_line_for_each_decision(tmp_path):
    command = [sys.executable, "live_run.py", str(tmp_path / "run"), "0"]
    done = subprocess.run(command, cwd=ROOT / "tests", capture_output=True, text=True, timeout=300, check=True)
    assert "\x1b" not in done.stdout and "candidates" not in done.stdout
    assert all(word in done.stdout for word in DECISIONS)
    assert done.stdout.count("iteration 2/3") == 1
