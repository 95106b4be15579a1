"""The failure policy: whose frames are shown, which exceptions count, what hangs, how an edited program goes on."""

import asyncio
import functools
import linecache
import re
import subprocess
import sys
import threading
import time
import traceback

import front_door
import pytest
from front_door import MANY, ROWS, calling, evaluate, optimize, said, search
from pydantic import BaseModel

import optimas_jax as oj
from optimas_jax.core.component import ComponentBug
from optimas_jax.core.running import event_loop, watch
from optimas_jax.core.text.frames import is_library
from optimas_jax.core.types import Outcome, StopRun, Trace, digest
from optimas_jax.core.values import Configuration, Hyperparameters


def test_an_error_of_the_metric_ends_the_run_and_names_its_line(tmp_path):
    def grade(example, made):
        return made["answer"] == example["wanted"]

    message = said(lambda: evaluate(tmp_path, calling(search), grade, ROWS[:1]))
    assert re.fullmatch(
        r"ComponentBug: the metric 'grade' raised KeyError on example 'row-0': 'answer' \(test_failure_policy.py, "
        r"line \d+: return made\[\"answer\"\] == example\[\"wanted\"\]\); outputs {'all': \[\['q0'\]\]}, "
        r"gold {'wanted': '0'}",
        message,
    )


def files_shown(call):
    """Files of the tracebacks that Python prints, without those of this test's own calls of the front door."""
    with pytest.raises((ValueError, StopRun)) as caught:
        call()
    text = "".join(traceback.format_exception(caught.value))
    return [file for file in re.findall(r'File "([^"]+)", line', text) if not file.endswith("frames.py")], text


def raising(question):
    return {}[question]


def test_users_see_their_own_frames_and_none_of_ours(tmp_path):
    stopping = oj.component(raising, on_error="stop")
    failing = oj.program(lambda question: raising(search(question)[0]), components=[search], on_error="stop")
    for call in (
        lambda: evaluate(tmp_path, calling(search), lambda outputs: raising("q")),
        lambda: evaluate(tmp_path, calling(stopping)),
        lambda: evaluate(tmp_path, failing),
        lambda: optimize(tmp_path / "run", calling(search), lambda outputs: raising("q")),
        lambda: evaluate(tmp_path, calling(search), lambda outputs: None),
        lambda: evaluate(tmp_path, calling(search), rows="nothing.csv"),
    ):
        shown, text = files_shown(call)
        assert set(shown) == {__file__, front_door.__file__}, text
        assert ("in raising\n" in text) == ("KeyError" in text)


def test_which_files_are_the_user_s(tmp_path):
    package = oj.__path__[0]
    assert not is_library(f"{package}_of_mine/file.py") and is_library(f"{package}/api.py")
    assert is_library("/usr/lib/python3/dist-packages/a.py") and is_library(asyncio.__file__)


def test_exceptions_count_as_failed_runs_and_too_many_end_the_run(tmp_path):
    def failing(share):
        @oj.component
        def flaky(question):
            return {}[question] if int(question[1:]) % 10 < share else question

        return flaky

    few = evaluate(tmp_path / "few", calling(failing(1)), rows=MANY[:30])
    assert few.mean == 0.9 and few.rows[0]["outcome"] == "crashed"
    where = r"\(test_failure_policy.py, line \d+: return {}\[question\] if int\(question\[1:\]\) % 10 < share else"
    assert re.match(rf"component 'flaky': KeyError: 'q0' {where}", few.rows[0]["failure"])
    assert ", 3 failed, such as by component 'flaky': KeyError: 'q0'" in repr(few)
    message = said(lambda: evaluate(tmp_path / "many", calling(failing(5)), rows=MANY[:30]))
    assert re.fullmatch(
        r"TooManyFailures: (\d+) of the last (\d+) runs ended with an exception, \1 of them with\n  component 'flaky': "
        rf"KeyError: 'q\d+' {where} question\)\nAbove 20% the run stops. Correct it and run the same command again: "
        "paid answers are kept. on_error='stop' of a component or program ends the run at its first exception",
        message,
    )


def test_what_fails_every_time_ends_after_five_runs(tmp_path):
    async def broken(question):
        await search(question)
        return {}[question]

    message = said(lambda: evaluate(tmp_path, oj.program(broken, components=[search])))
    assert message.startswith(
        "TooManyFailures: 5 of the last 5 runs ended with an exception, 5 of them with\n  the program 'broken': "
        "KeyError: 'q"
    )
    tuned = oj.program(broken, components=[search, oj.setting(1, choices=(1, 2), name="k")])
    assert said(lambda: optimize(tmp_path / "run", tuned)).startswith("TooManyFailures: 5 of the last 5 runs")


def test_the_first_exception_ends_the_run_where_that_is_asked_for(tmp_path):
    message = said(lambda: evaluate(tmp_path, calling(oj.component(raising, on_error="stop"))))
    assert message.startswith("ComponentBug: component 'raising' raised KeyError on example 'row-0': 'q0' (test_fail")

    async def broken(question):
        return raising(await search(question))

    with pytest.raises(ComponentBug, match="the program raised TypeError on example 'row-0': unhashable type: 'list'"):
        evaluate(tmp_path, oj.program(broken, components=[search], on_error="stop"))


def test_a_loaded_program_raises_what_it_raises(tmp_path):
    k = oj.setting(1, choices=(1, 2), name="k")

    async def picky(question):
        found = await search(question)
        return {"q": found * k.value}[question[0]]

    program = oj.program(picky, components=[search, k])
    best = optimize(tmp_path, program).best
    assert best(question="q") == ["q"]
    with pytest.raises(ComponentBug, match="the program raised KeyError on example '': 'x'") as caught:
        best(question="x")
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_run_resumes_with_what_was_paid_when_the_fault_is_mended(tmp_path):
    paid, mended = [], []

    @oj.component(effect=True)
    def bought(question):
        paid.append(question)
        return question

    async def program(question):
        text = await bought(question)
        return text if mended else {}[text]

    evaluated = functools.partial(evaluate, tmp_path, oj.program(program, components=[bought]))
    said(evaluated)
    before = len(paid)
    mended.append(True)
    assert evaluated().mean == 1.0 and len(paid) == len(ROWS) and before >= 5


def test_a_failed_call_is_not_taped_but_made_again(tmp_path):
    calls = []

    @oj.component(effect=True)
    def service(question):
        calls.append(question)
        if len(calls) == 1:
            raise ConnectionError("busy")
        return question

    assert evaluate(tmp_path, calling(service), rows=ROWS[:1]).mean == 0.0
    assert evaluate(tmp_path, calling(service), rows=ROWS[:1]).mean == 1.0
    assert evaluate(tmp_path, calling(service), rows=ROWS[:1]).mean == 1.0 and len(calls) == 2


def test_a_component_that_never_returns_is_told_of(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(event_loop, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(event_loop, "_WAIT_SECONDS", 0.05)
    monkeypatch.setattr(watch, "_LATE", 0.05)
    ends = threading.Event()
    threading.Timer(0.6, ends.set).start()
    hanging = oj.component(lambda question: str(ends.wait(30)), name="search")
    evaluate(tmp_path, calling(hanging))
    lines = capsys.readouterr().out
    assert re.search(r"waiting for component 'search' for \d s \(\d calls\); give it timeout=SECONDS if", lines)


def test_what_a_run_waits_for():
    look = watch.Watch()
    with look.waiting("program", ""):
        way = "; give it timeout=SECONDS if it may never end"
        assert look.late(0.0) == [f"waiting for the program itself for 0 s{way}"]
        with look.waiting("request", "answer"):
            assert look.late(0.0) == []  # it ends in any case
            with look.waiting("metric", "grade"):
                assert look.late(0.0) == ["waiting for the metric 'grade' for 0 s"] and look.late(60.0) == []
    assert not look.waits


def test_functions_that_never_return_do_not_keep_the_process():
    code = """
import asyncio, time
from optimas_jax.core.running import event_loop
async def work():
    try:
        async with asyncio.timeout(0.05):
            await asyncio.to_thread(time.sleep, 600)
    except TimeoutError:
        print("left behind", flush=True)
event_loop.run(work())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("left behind\n", "")


def test_a_time_limit_is_a_number(tmp_path):
    assert said(lambda: oj.component(raising, timeout="5")) == (
        "DeclarationError: timeout is '5', expected seconds above 0, or None for no limit"
    )
    slow = evaluate(
        tmp_path, calling(oj.component(lambda question: time.sleep(5), name="slow", timeout=0.01)), rows=ROWS
    )
    assert slow.rows[0]["failure"] == "component 'slow': no answer within 0.01 s"


CELL = """
k = oj.setting(1, choices=(1, 2))
@oj.component(effect=True)
def search(question, k):
    return found(question, k)
def found(question, k):
    paid.append(question)
    return [question] * k
async def rag(question):
    return {"found": await search(question, k.value)}
def grade(example, made):
    return len(made["found"]) / 2
result = optimize(folder, rag, grade)
"""


@pytest.fixture
def notebook(tmp_path):
    """Runs a cell; returns how many calls it paid for."""
    variables = {"oj": oj, "optimize": optimize, "folder": tmp_path / "run", "paid": []}

    def run(text):
        before, name = len(variables["paid"]), f"<cell {hash(text)}>"
        linecache.cache[name] = (len(text), None, text.splitlines(True), name)  # as notebooks do
        exec(compile(text, name, "exec"), variables)
        return len(variables["paid"]) - before

    return run


def test_a_cell_run_twice_resumes_and_an_edited_one_is_another_program(notebook, tmp_path):
    assert notebook(CELL) > 30
    assert notebook(CELL) == 0
    assert notebook(CELL.replace("return len", "# a word\n    return len")) == 0
    for old, new, what in (
        ("(1, 2)", "(1, 2, 3)", "component 'k'"),
        ("/ 2", "/ 3", "the metric 'grade'"),
        ("[question] * k", "[question] * (k + 1)", "component 'search'"),  # in a function that it calls
        ("k.value)}", "k.value + 1)}", "the program 'rag'"),
        ("choices=(1, 2))", "choices=(1, 2), description='How many.')", "component 'k'"),
    ):
        assert said(lambda old=old, new=new: notebook(CELL.replace(old, new))) == (
            f"FolderError: another program is in {tmp_path / 'run'}: {what} changed. Choose another workdir= "
            "(--workdir), so that its results stay; with a copy of tape.sqlite there, equal requests are free"
        )
    assert notebook(CELL) == 0


def test_a_function_that_is_mended_goes_on_in_its_folder_and_pays_for_what_changed(notebook, tmp_path):
    broken = CELL.replace("/ 2", "/ len(example['found'])")
    assert "the metric 'grade' raised KeyError" in said(lambda: notebook(broken))
    assert (tmp_path / "run" / "tape.sqlite").exists()
    assert notebook(CELL) > 30
    edited = CELL.replace("folder, rag", 'folder.with_name("other"), rag')
    assert notebook(edited) > 30


def test_a_program_that_lost_a_component_is_told_so_and_not_of_settings_that_follow_from_it(tmp_path):
    @oj.component(effect=True)
    def look(question):
        return question

    def grade(example, made):
        raise RuntimeError("not today")

    def begin(*names):
        settings = [oj.setting(1, choices=(1, 2), name=name) for name in names]

        async def looking(question):
            return [await look(question), *(setting.value for setting in settings)]

        program = oj.program(looking, components=[*settings, look])
        config = {"reward.model": "random:0"}  # without a number of iterations
        oj.optimize(program, grade, MANY, model="random:0", workdir=tmp_path, config=config)

    assert "not today" in said(lambda: begin("a", "b", "c"))
    assert said(lambda: begin("a", "b")) == (
        f"FolderError: another program is in {tmp_path}: component 'c' is not found in it. Choose another workdir= "
        "(--workdir), so that what it holds stays; with a copy of tape.sqlite there, equal requests are free"
    )


class Bot:
    def __init__(self, times):
        self.times = times

    def say(self, question):
        return question * self.times

    def __call__(self, question):
        return question * self.times


def repeat(around, question):
    [times] = [int(digit) for digit in str(around).replace("(1, 2)", "") if digit.isdigit()]
    return question * times


def test_results_on_tape_are_of_the_function_as_it_is(tmp_path):
    """Of its helpers, its object and its arguments, too."""
    for number, component in enumerate(
        (
            lambda n: oj.component(Bot(n).say, effect=True, name="say"),
            lambda n: oj.component(Bot(n), effect=True, name="say"),
            lambda n: oj.component(functools.partial(lambda question, n: question * n, n=n), effect=True, name="say"),
            *(
                lambda n, around=around: oj.component(functools.partial(repeat, around(n)), effect=True, name="say")
                for around in (lambda n: [n], lambda n: ("a", {"b": [n]}), lambda n: {(1, 2): n}, lambda n: {n})
            ),
        )
    ):
        for times in (2, 3, 2):
            [row] = evaluate(tmp_path / str(number), calling(component(times)), rows=ROWS[:1]).rows
            assert row["outputs"] == {"all": ["q0" * times]}


def test_what_a_prompt_declares_is_its_text_and_its_form():
    class Verdict(BaseModel):
        good: bool

    given = [
        {},
        {"output": Verdict},
        {"template": "{instruction} {question}"},
        {"max_tokens": 3},
        {"most_demos": 1},
        {"description": "Says."},
    ]
    made = [oj.prompt("Say it.", **options).declared for options in given] + [oj.prompt("Say it now.").declared]
    assert len({digest(one) for one in made}) == len(made) and digest(made[0]) == digest(oj.prompt("Say it.").declared)


def test_a_candidate_that_makes_runs_fail_loses_and_stops_nothing():
    default, candidate = (Configuration({"k": Hyperparameters({"value": value})}) for value in (1, 2))
    look = watch.Watch(default)
    for _ in range(40):
        look.ended(ended_with(Outcome.OK), default)
        look.ended(ended_with(Outcome.CRASHED), candidate)
    look.configuration = candidate  # accepted
    with pytest.raises(watch.TooManyFailures, match=r"\d+ of the last \d+ runs ended with an exception"):
        for _ in range(20):
            look.ended(ended_with(Outcome.CRASHED), candidate)
    look.ended(ended_with(Outcome.OK), candidate)  # a good run is none of them


def ended_with(outcome):
    return Trace("e", 0, (), {}, outcome, 0.0, "" if outcome is Outcome.OK else "KeyError: 'q' (file.py, line 1)")
