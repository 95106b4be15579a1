"""The board of a run: what it shows, how long the rest takes, and how it is paused and stopped."""

import asyncio
import contextlib
import dataclasses
import threading
import time

import pytest

from optimas_jax.core.folder import events
from optimas_jax.core.folder.control import ask
from optimas_jax.core.folder.live import read_status
from optimas_jax.core.progress import Bar
from optimas_jax.core.running.event_loop import Waiting
from optimas_jax.core.running.execution import gather
from optimas_jax.core.usage import Usage
from optimas_jax.core.values import Choice, Hyperparameters, Prompt
from optimas_jax.llm.accounts.ledger import Ledger
from optimas_jax.loop.live import board as boards
from optimas_jax.loop.live.board import Board, Subject
from optimas_jax.loop.live.left import Pace, seconds_left
from optimas_jax.loop.live.where import Where, in_words


class Shown:
    """Progress that keeps what it is told."""

    def __init__(self):
        self.lines, self.states = [], []

    def line(self, text):
        self.lines.append(text)

    @contextlib.contextmanager
    def bar(self, label, total):
        yield lambda: None

    def show(self, status):
        self.states.append(status)


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """A board of a run in a folder, which looks often."""
    for name in ("_LOOK_SECONDS", "_WRITE_SECONDS", "_HELD_SECONDS"):
        monkeypatch.setattr(boards, name, 0.01)
    shown = Shown()
    board = Board(shown)
    subject = Subject(tmp_path, "rag:own", Ledger(), iterations=4, val_runs=8, final_runs=40, plan=None)
    return board, subject, shown, tmp_path


def status_of(folder):
    status = read_status(folder)
    assert status is not None
    return status


def until(what):
    end = time.monotonic() + 60
    while not (found := what()):
        assert time.monotonic() < end
        time.sleep(0.005)
    return found


def proposal(name, value):
    gains = {"expected_gain": 0.0, "labelled_gain": None, "local_gain": None, "inputs": 1, "labelled": 0}
    return events.Proposal(component="drafter", kind="opro", value=value, id=name, **gains)


def test_events_say_where_a_search_is():
    where = Where()
    for event in (
        events.Curve(at="start", iteration=0, val_score=0.25, spent=Usage()),
        events.Pick(iteration=1, component="drafter"),
        proposal("a", Prompt("Be short.")),
        proposal("b", Choice("gpt")),
    ):
        where = where.after(event, 5.0, 10)
    assert (where.iteration, where.component, where.score, where.began) == (2, "drafter", 0.25, 5.0)
    assert where.doing("gate") == "opro: Be short." and where.doing("propose") == "proposals are written"
    gate = {"value": "", "kind": "opro", "expected_gain": 0.0, "labelled_gain": None, "local_gain": None}
    tested = {"val_gain": 0.0, "ci95": (0.0, 0.0), "p_value": 1.0, "n": 8, "accepted": False}
    where = where.after(events.Gate(iteration=1, component="drafter", id="a", **gate, **tested), 6.0, 12)
    assert where.doing("gate") == "opro: gpt"
    ended = where.after(events.Curve(at="iteration", iteration=1, val_score=0.5, spent=Usage()), 9.0, 20)
    assert ended.ends == ((5.0, 9.0),) and ended.score == 0.5 and ended.start == 0.25
    replayed = where.after(events.Curve(at="iteration", iteration=1, val_score=0.5, spent=Usage()), 9.0, 10)
    assert replayed.ends == ()  # which tells nothing of the pace
    assert in_words(Hyperparameters({"k": 2})) == "k = 2"


def test_the_rest_follows_iterations_then_final_runs():
    pace = Pace("optimize", iteration=2, iterations=4, began=110.0, ends=((10.0, 110.0),), seconds=150.0)
    assert seconds_left(pace, None) is None  # nothing is known of final runs
    pace = dataclasses.replace(pace, run_seconds=0.5, final_runs=40)
    assert seconds_left(pace, None) == pytest.approx(60 + 200 + 20)
    assert seconds_left(dataclasses.replace(pace, phase="confirm"), None) == 20
    assert seconds_left(Pace("collect"), None) is None
    last = Pace("evaluate", bars=(Bar("evaluation runs", 10, 40, 5.0),))
    assert seconds_left(last, None) == seconds_left(last, {"evaluate": Usage(seconds=99.0)}) == 15.0


def test_the_rest_follows_a_plan_at_the_pace_of_the_run():
    plan = {
        "collect": Usage(calls=10, seconds=100.0),
        "optimize: gate": Usage(calls=10, seconds=300.0),
        "evaluate": Usage(calls=10, seconds=100.0),
    }
    assert seconds_left(Pace("collect"), plan) == pytest.approx(500.0)  # the plan's own, at the start
    half = Pace("optimize", iteration=2, iterations=3, used={"optimize: gate": Usage(calls=5)}, seconds=500.0)
    slow = seconds_left(half, plan)
    assert slow == pytest.approx(250 * (500 + 25) / (250 + 25))  # twice as slow as planned
    bounded = seconds_left(dataclasses.replace(half, used={"optimize: gate": Usage(calls=999)}), plan)
    assert bounded == pytest.approx(200 * 525 / (300 + 25))  # iterations say more than calls
    replayed = dataclasses.replace(half, paid=0.0, seconds=1.0)
    assert seconds_left(replayed, plan) == pytest.approx(250 * 26 / 25)  # answers from the tape tell no pace
    assert seconds_left(Pace("setup"), plan) == 500.0
    assert seconds_left(Pace("collect"), {"collect": Usage()}) is None


def test_a_run_is_shown_and_written_until_its_end(opened):
    board, subject, shown, folder = opened
    with board.of(subject), board.bar("steps", 2) as advance:
        board.line("[one]")
        advance()
        until(lambda: (bars := status_of(folder).bars) and bars[0].done)
        status = status_of(folder)
        assert status.title == "rag:own" and status.state == "running" and status.iterations == 4
    assert not (folder / "live.json").exists() and shown.lines == ["[one]"]
    assert shown.states[-1] is None and any(one.bars for one in shown.states if one)


def test_a_paused_run_begins_nothing_and_goes_on(opened):
    board, subject, _, folder = opened
    began, release = [], threading.Event()

    async def call():
        began.append(1)
        while not release.is_set():
            await asyncio.sleep(0.005)

    def work():
        until(lambda: len(began) == 2)  # in flight
        command = status_of(folder).id
        ask(folder, command, "pause")
        until(board.held)
        release.set()
        until(lambda: status_of(folder).state == "paused")
        assert len(began) == 2
        ask(folder, command, "resume")

    with board.of(subject):
        helper = threading.Thread(target=work)
        helper.start()
        gather([call] * 6, concurrency=2, waiting=Waiting(held=board.held))
        helper.join()
    assert len(began) == 6


def test_steps_of_the_runs_own_thread_wait_too(opened):
    board, subject, _, folder = opened
    done = []

    def work():
        command = status_of(folder).id
        ask(folder, command, "pause")
        until(board.held)
        time.sleep(0.05)
        steps = len(done)
        time.sleep(0.1)
        assert len(done) <= steps + 1
        ask(folder, command, "resume")
        until(lambda: len(done) > steps + 5)
        ended.set()

    ended = threading.Event()
    with board.of(subject), board.bar("training steps", 10**6) as advance:
        helper = threading.Thread(target=work)
        helper.start()
        while not ended.is_set():
            done.append(1)
            time.sleep(0.002)
            advance()
        helper.join()


def test_a_stop_interrupts_the_thread_of_the_run_alone(opened):
    board, subject, _, folder = opened
    with pytest.raises(KeyboardInterrupt), board.of(subject):
        command = status_of(folder).id
        ask(folder, "another", "stop")
        until(lambda: not (folder / "control.json").exists())
        time.sleep(0.05)
        ask(folder, command, "stop")
        while True:
            time.sleep(0.01)
    assert not (folder / "live.json").exists()
    with Board(Shown()).of(subject):  # an old wish stops no later command
        time.sleep(0.05)


def test_an_interrupt_at_the_end_leaves_nothing_behind(opened):
    board, subject, shown, folder = opened

    class Interrupted:
        def __enter__(self):
            raise KeyboardInterrupt

        def __exit__(self, *error):
            pass

    board._stops = Interrupted()
    with pytest.raises(KeyboardInterrupt), board.of(subject):
        ask(folder, "another command", "stop")
    assert shown.states[-1] is None
    assert not (folder / "live.json").exists() and not (folder / "control.json").exists()
    assert not any(thread.name == "optimas_jax board" for thread in threading.enumerate())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_paused_run_goes_on_where_nobody_could_resume_it(opened):
    board, subject, shown, folder = opened

    def show(status):
        if status is not None and status.state != "running":
            raise OSError("the terminal is gone")

    shown.show = show
    with board.of(subject):
        ask(folder, status_of(folder).id, "pause")
        until(lambda: not any(thread.name == "optimas_jax board" for thread in threading.enumerate()))
        assert not board.held()
