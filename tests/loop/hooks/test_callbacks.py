"""Callbacks: every event of the journal, typed and in order, whatever they do themselves."""

import asyncio
import dataclasses
import io
import json
import threading

import pytest
from fakes import ScriptedCompleter
from front_door import MANY, SETTINGS
from rich.console import Console
from scripted import answer, scripted_config

import optimas_jax as oj
from optimas_jax.benchmarks import hotpotqa
from optimas_jax.benchmarks.modules import Benchmark
from optimas_jax.core.folder.files import FolderError
from optimas_jax.core.usage import Usage
from optimas_jax.core.values import Hyperparameters
from optimas_jax.llm.local import EngineError
from optimas_jax.loop.stages import run_stages
from optimas_jax.report.console import ConsoleProgress

events = oj.events
MODEL = oj.LanguageModel("random:0", max_tokens=4)


def scripted(folder, callbacks, respond=answer):
    """A run of all stages with a scripted model."""
    made = Benchmark(hotpotqa.METRIC, hotpotqa.load, hotpotqa.build, CALLBACKS=callbacks)
    progress = ConsoleProgress(Console(file=io.StringIO()))
    run_stages(scripted_config(), folder, "all", progress, ScriptedCompleter(respond), benchmark=made)


def journal(folder):
    rows = [json.loads(line) for line in (folder / "journal.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in row.items() if name != "time"} for row in rows]


def lines(told):
    """Events as the journal would hold them."""
    return [json.loads(json.dumps(events.to_json(event), default=list)) for event in told]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder, told = tmp_path_factory.mktemp("whole") / "run", []
    requests = []

    def counting(request):
        requests.append(request)
        return answer(request)

    scripted(folder, [told.append], counting)
    return folder, told, len(requests)


def test_every_event_of_the_journal_arrives_typed_and_in_order(whole):
    folder, told, _ = whole
    first, *of_run, last = told
    assert lines(of_run) == journal(folder)
    kinds = {type(event) for event in of_run}
    unseen = {events.Update, events.Validation, events.Tuned, events.OutOfBudget, events.Refresh, events.Dropped}
    assert kinds >= set(events.OF_RUNS) - unseen
    assert first.folder == str(folder) and first.stage == "all" and not first.resumed
    assert first.examples == {"train": 16, "val": 8, "test": 12, "confirm": 8} and first.settings["seed"] == first.seed
    assert last.finished and last.reason == "" and {"collect", "optimize: propose", "evaluate"} <= set(last.spent)
    assert all(isinstance(usage, Usage) for usage in last.spent.values())


def test_the_journal_is_read_back_as_the_events_that_were_told(whole):
    folder, told, _ = whole
    assert lines(events.read_events(folder)) == lines(told[1:-1])
    assert [type(event) for event in events.read_events(folder)] == [type(event) for event in told[1:-1]]
    of = {type(event): event for event in events.read_events(folder)}
    assert isinstance(of[events.Curve].spent, Usage) and of[events.Curve].spent.calls > 0
    assert isinstance(of[events.Proposal].value, Hyperparameters | type(of[events.Proposal].value))
    assert of[events.Proposal] in told and of[events.Pick] in told


def test_events_of_a_proposal_are_joined_by_its_id(whole):
    folder, told, _ = whole
    rows = [json.loads(line) for line in (folder / "proposals.jsonl").read_text().splitlines()]
    verdicts = [event for event in told if isinstance(event, events.Verdict)]
    assert [(one.id, one.parent, one.verdict, one.reason) for one in verdicts] == [
        (row["id"], row["parent"], row["verdict"], row["reason"]) for row in rows
    ]
    known = {one.id: one for one in verdicts}
    for event in told:
        if isinstance(event, events.Proposal | events.Gate | events.Accept):
            assert known[event.id].parent == event.parent and known[event.id].iteration == event.iteration
        if isinstance(event, events.Gate):
            assert event.val_gain == pytest.approx(event.after - event.before) and event.covered and event.of == 8
            assert known[event.id].reason == event.reason
        if isinstance(event, events.Accept):
            assert known[event.id].verdict == "accepted"


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_a_run_that_was_killed_and_resumed_tells_every_event_once(whole, tmp_path, share):
    folder, _, paid = whole
    count, before, after = 0, [], []

    def dying(request):
        nonlocal count
        count += 1
        if count > share * paid:
            raise EngineError("the server died")
        return answer(request)

    with pytest.raises(EngineError):
        scripted(tmp_path / "run", [before.append], dying)
    assert isinstance(before[-1], events.End) and not before[-1].finished
    assert before[-1].reason == "EngineError: the server died"
    scripted(tmp_path / "run", [after.append])
    assert before[1:-1] and lines([*before[1:-1], *after[1:-1]]) == journal(tmp_path / "run") == journal(folder)
    assert after[0].resumed and after[-1].finished
    again = []
    scripted(tmp_path / "run", [again.append])
    assert [type(event) for event in again] == [events.Begin, events.End]  # nothing is new


# What a callback does


@oj.component(suffix=oj.setting("x", choices=("x", "y")))
def add(suffix, question):
    """Adds a suffix."""
    return question + suffix


def grade(outputs):
    return float(outputs["all"][0].endswith("y"))


async def program(question):
    return {"all": [await add(question)]}


def optimize(folder, callbacks, progress=None):
    return oj.optimize(
        oj.program(program, components=[add]),
        grade,
        MANY,
        model=MODEL,
        workdir=folder,
        config=SETTINGS,
        callbacks=callbacks,
        progress=progress or ConsoleProgress(quiet=True),
    )


class Lines(ConsoleProgress):
    def __init__(self):
        super().__init__(quiet=True)
        self.lines = []

    def line(self, text):
        self.lines.append(text)


def test_an_exception_is_told_once_for_each_callback_and_kind_and_stops_nothing(tmp_path):
    told, shown = [], Lines()

    def broken(event):
        raise KeyError("x") if isinstance(event, events.Curve) else ZeroDivisionError("always [this]")

    async def leaves(event):
        raise SystemExit(3)

    result = optimize(tmp_path / "run", [broken, leaves, told.append], shown)
    assert result.results["optimized"]["mean"] == 1.0 and isinstance(told[-1], events.End)
    warnings = sorted(line for line in shown.lines if "callback" in line)
    assert len(warnings) == 3
    assert warnings[0].startswith("warning: callback 'broken' raised KeyError: 'x' (test_callbacks.py")
    assert "raised ZeroDivisionError: always [this]" in warnings[1] and "at begin; the run goes on" in warnings[1]
    assert "callback 'leaves' raised SystemExit: 3" in warnings[2]


def test_plain_and_async_ones_are_told_of_the_same_and_a_slow_one_holds_up_nothing(tmp_path):
    plain, coroutine, loops, ended = [], [], set(), threading.Event()

    def slow(event):
        if isinstance(event, events.Begin):
            assert ended.wait(60)  # until the run was told to the others to its end
        plain.append(event)

    async def quick(event):
        await asyncio.sleep(0)
        loops.add(asyncio.get_running_loop())
        coroutine.append(event)
        if isinstance(event, events.End):
            ended.set()

    optimize(tmp_path / "run", [slow, quick])
    assert plain == coroutine and len(loops) == 1 and len(plain) > 10


def test_a_callback_that_never_ends_is_left_behind(tmp_path):
    shown, never = Lines(), threading.Event()
    optimize_with = {**SETTINGS, "stop_grace": 0.3}

    def stuck(event):
        never.wait()

    oj.optimize(
        oj.program(program, components=[add]),
        grade,
        MANY,
        model=MODEL,
        workdir=tmp_path / "run",
        config=optimize_with,
        callbacks=[stuck],
        progress=shown,
    )
    never.set()
    [warning] = [line for line in shown.lines if "left behind" in line]
    assert "callback 'stuck' is at begin" in warning


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        (print, r"callbacks is <built-in function print>, expected a list of functions: callbacks=\[function\]"),
        ("tell", r"callbacks is 'tell', expected a list of functions"),
        ([None], r"callbacks\[0\] is None, expected a function of \(event\)"),
        ([print, 3], r"callbacks\[1\] is 3, expected a function of \(event\)"),
        ([lambda: None], r"callbacks\[0\] is <lambda>\(\), expected a function of \(event\) \(too many positional"),
        ([list], r"callbacks\[0\] is <class 'list'>, expected a function of \(event\)"),
    ],
)
def test_what_is_no_callback_is_refused_before_anything_runs(tmp_path, callbacks, message):
    with pytest.raises(ValueError, match=message):
        optimize(tmp_path / "run", callbacks)
    assert not (tmp_path / "run").exists()


def test_events_are_frozen_and_say_what_they_are():
    for kind in (*events.OF_RUNS, *events.OF_COMMANDS):
        assert kind.__dataclass_params__.frozen and kind.__doc__ and "Attributes:" in kind.__doc__
        documented = kind.__doc__.partition("Attributes:")[2]
        known = {"iteration", "component"}
        fields = {field.name for field in dataclasses.fields(kind)} - known
        assert {name for name in fields if name not in documented} == set(), kind
    assert events.name_of(events.OutOfBudget) == "out_of_budget"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"event": "pick", "component": "a"}, r"not the fields of an event 'pick' .*'iteration'"),
        (
            {"event": "curve", "at": "end", "iteration": 0, "val_score": 1.0},
            r"not the fields of an event 'curve' \(KeyE",
        ),
    ],
)
def test_a_line_without_its_fields_is_named(tmp_path, line, message):
    (tmp_path / "journal.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(FolderError, match=message):
        events.read_events(tmp_path)


def test_lines_of_other_versions_are_read(tmp_path):
    old, newer = {"event": "dropped", "component": "a", "reason": "empty", "text": ""}, {"event": "of_tomorrow", "x": 1}
    lines = [json.dumps({**line, "time": 1.0}) + "\n" for line in (old, newer)]
    (tmp_path / "journal.jsonl").write_text("".join(lines))
    assert events.read_events(tmp_path) == [events.Dropped(component="a", reason="empty", text="")]
    assert events.read_events(tmp_path / "nothing") == []
