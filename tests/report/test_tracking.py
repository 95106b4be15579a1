"""Trackers: what they are told of, once, whatever their libraries do. The libraries are real in tests/long."""

import asyncio
import dataclasses
import importlib.metadata
import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import ScriptedCompleter

from optimas_jax.core.folder import events
from optimas_jax.core.folder.files import append_lines, json_line
from optimas_jax.core.running.tracking import TRACKERS, tracker_names
from optimas_jax.core.usage import Usage
from optimas_jax.core.values import Demo, Hyperparameters, Prompt
from optimas_jax.llm.accounts.ledger import Ledger
from optimas_jax.llm.base import CompletionRequest, Message
from optimas_jax.llm.calls import call_of
from optimas_jax.llm.tapes.tape import Tape
from optimas_jax.llm.tapes.taped import TapedCompleter
from optimas_jax.loop.hooks.callbacks import Callbacks
from optimas_jax.report.trackers import tracker as tracker_module
from optimas_jax.report.trackers import wandb as wandb_module
from optimas_jax.report.trackers.choose import tracker, with_trackers
from optimas_jax.report.trackers.otel import call_attributes, content_attributes
from optimas_jax.report.trackers.points import Position, entry, moved, scalars_and_texts
from optimas_jax.report.trackers.tensorboard import TensorBoard
from optimas_jax.report.trackers.tracker import Tracker, TrackerError

HOSTILE = "[red]<script>{{'\"\u202e\n\x00" + "x" * 100_000
USED = Usage(calls=3, prompt_tokens=700, completion_tokens=300, usd=0.5, seconds=2.0)
GATE = events.Gate(
    iteration=1, component="draft", value="d", kind="demos", expected_gain=0.1, labelled_gain=None,
    local_gain=float("nan"), val_gain=0.2, ci95=(0.1, 0.3), p_value=0.01, n=8, of=32, accepted=True, reason="why",
)  # fmt: skip
RUN = [
    events.Groups(component="draft", groups=5, informative=3, stopped="enough"),
    events.Epoch(epoch=0, metrics={"loss": 0.75}),
    events.Curve(at="start", iteration=0, val_score=0.25, spent=USED),
    events.Pick(iteration=1, component="draft", rule="gap"),
    GATE,
    events.Accept(
        iteration=1, component="draft", kind="demos", value=Prompt("Do it.", (Demo({"q": 1}, {"a": 2}),)), val_gain=0.2,
        ci95=(0.1, 0.3), p_value=0.01, val_score=0.5, covered=True, id="1", parent="0",
    ),
    events.Curve(at="iteration", iteration=1, val_score=0.5, spent=USED + USED),
    events.SearchEnd(iterations=2, reason="iterations", accepted=1, val_score=0.5),
    events.Evaluation(split="test", n=9, gain={"mean": 0.1, "ci95": [0, 0.2], "p_value": 0.04}, before=0.3, after=0.4),
]  # fmt: skip
END = events.End(finished=True, reason="", spent={"optimize": USED})
OTHERS = [
    events.Update(component="draft", number=2, adapter="a", metrics={"kl": 0.1}),
    events.Validation(component="draft", number=2, score=0.4, score_is="local"),
    events.Tuned(component="draft", adapter="a", score=0.5, before=0.4, kl=0.1, updates=4, learned=3),
    events.Label(iteration=1, component="draft", proposals=2, inputs=3, labelled=4),
    events.Dropped(component="draft", reason="empty", text=HOSTILE),
    events.Proposed(component="draft", usable=2, dropped={"empty": 1}),
    events.Proposal(
        component=HOSTILE, kind="opro", value=Hyperparameters({"k": 2}), expected_gain=0.1, labelled_gain=0.1,
        local_gain=None, inputs=4, labelled=2,
    ),
    events.Race(component="draft", labelled_runs=4, effective_runs=5.0, local_reward=True, weight=0.5),
    events.Verdict(
        iteration=1, component="draft", kind="demos", value="d", verdict="refused", reason="no", id="1", parent="0"
    ),
    events.Adaptation(fresh_groups=2, fresh_pairs=3, pair_accuracy_before=0.75, trained=True, reward="r"),
    events.OutOfBudget(spent=USED),
    events.Confirmation(n=8, changes=1, verdict="confirmed", tests=({"gain": 0.1, "ci95": (0, 0.2), "p_value": 0.1},)),
    events.Confirmation(n=8, changes=None, verdict="not confirmed"),
    events.Alignment(reward="r", alignment={"draft": {"pair_accuracy": 0.7, "n_pairs": 9}}),
    events.Blame(reward="r", passing=3, failing=4, first={"draft": 3}),
    events.Refresh(groups={"draft": 4}),
]  # fmt: skip


def begin(folder, **changes):
    settings = {"seed": 0, "optimize": {"iterations": 2}, "server": {"base_url": "https://me:pass@host/v1?key=1"}}
    values = {
        "folder": str(folder), "benchmark": "b", "variant": "v", "seed": 0, "stage": "all", "components": ("draft",),
        "examples": {"train": 2}, "settings": settings, "resumed": False,
    }  # fmt: skip
    return events.Begin(**{**values, **changes})


class Library:
    """Notes what it gets; fails where it is told to."""

    def __init__(self):
        self.begun, self.logged, self.ended, self.fails = [], [], 0, 0

    def check(self):
        pass

    def begin(self, begin, known):
        self._fail()
        self.begun.append(known)
        return known or "id-1"

    def log(self, one):
        self._fail()
        self.logged.append(one.event)

    def end(self, end):
        self.ended += 1

    def _fail(self):
        if self.fails:
            self.fails -= 1
            raise OSError("no network")


def command(folder, library, told, *, journal=(), end: events.End | None = END):
    """A command that finds ``journal`` in the folder and has ``told`` as news; it is killed without ``end``."""
    tracked = Tracker("fake", library)
    tracked(begin(folder, resumed=bool(journal), earlier=len(journal)))
    for event in told:
        append_lines(folder / "journal.jsonl", [json_line({**events.to_json(event), "time": 1.0})])
        tracked(event)
    if end is not None:
        tracked(end)


def names(told):
    return [events.name_of(event) for event in told]


def test_a_run_is_logged_from_its_begin_to_its_end(tmp_path):
    library = Library()
    command(tmp_path, library, RUN)
    assert library.begun == [""] and library.ended == 1
    assert library.logged == ["begin", *names(RUN), "end"]
    assert json.loads((tmp_path / "trackers" / "fake.json").read_text()) == {"id": "id-1", "logged": len(RUN)}


def test_a_resumed_run_continues_and_logs_nothing_twice(tmp_path):
    library = Library()
    command(tmp_path, library, RUN[:3], end=None)
    command(tmp_path, library, RUN[3:], journal=RUN[:3])
    assert library.begun == ["", "id-1"]
    assert library.logged == ["begin", *names(RUN), "end"]
    command(tmp_path, library, [], journal=RUN)  # a replay has no news
    assert library.begun == ["", "id-1"] and library.logged[-1] == "end" and library.ended == 1


def test_what_a_killed_command_did_not_log_is_logged_by_the_next(tmp_path):
    command(tmp_path, Library(), RUN[:2], end=None)
    for event in RUN[2:4]:  # written, and not told before the process was killed
        append_lines(tmp_path / "journal.jsonl", [json_line(events.to_json(event))])
    library = Library()
    command(tmp_path, library, RUN[4:], journal=RUN[:4])
    assert library.logged == [*names(RUN[2:]), "end"]


def test_a_tracker_that_comes_later_gets_the_whole_run(tmp_path):
    command(tmp_path, Library(), RUN)
    (tmp_path / "trackers" / "fake.json").unlink()
    library = Library()
    command(tmp_path, library, [], journal=RUN)
    assert library.logged == ["begin", *names(RUN), "end"]


def test_a_library_that_fails_is_told_of_once_and_tried_again(tmp_path, monkeypatch):
    lines, library = [], Library()
    library.fails = 3
    monkeypatch.setattr(tracker_module, "_PAUSE", 0.0)
    told = Callbacks([Tracker("fake", library)], lines.append, grace=5)
    told.tell(begin(tmp_path))
    for event in RUN:
        told.tell(event)
    told.tell(END)
    told.close()
    assert len(lines) == 1 and "callback 'fake' raised OSError: no network" in lines[0], lines
    assert library.logged == ["begin", *names(RUN), "end"]


def test_a_library_that_is_down_is_asked_again_after_a_while(tmp_path):
    lines, library = [], Library()
    library.fails = 10_000
    told = Callbacks([Tracker("fake", library)], lines.append, grace=5)
    for event in (begin(tmp_path), *RUN, END):
        told.tell(event)
    told.close()
    assert library.fails == 9_999 and len(lines) == 1
    library.fails = 0
    for event in RUN:
        append_lines(tmp_path / "journal.jsonl", [json_line(events.to_json(event))])
    command(tmp_path, library, [], journal=RUN)
    assert library.logged == ["begin", *names(RUN), "end"]


def test_a_tracker_of_several_runs_warns_of_each(tmp_path):
    lines, library = [], Library()
    library.fails, tracked = 10_000, Tracker("fake", library)
    for name in ("one", "two"):
        told = Callbacks([tracked], lines.append, grace=5)
        for event in (begin(tmp_path / name), *RUN, END):
            told.tell(event)
        told.close()
    assert len(lines) == 2, lines


def test_a_damaged_file_of_a_tracker_is_told_of_once_and_stays(tmp_path):
    lines, library = [], Library()
    file = tmp_path / "trackers" / "fake.json"
    file.parent.mkdir()
    file.write_text("{")
    told = Callbacks([Tracker("fake", library)], lines.append, grace=5)
    for event in (begin(tmp_path), *RUN, END):
        told.tell(event)
    told.close()
    assert len(lines) == 1 and "fake.json" in lines[0], lines
    assert file.read_text() == "{" and not library.begun and not library.ended


def test_position_and_axes():
    position = Position()
    for event in RUN[:5]:
        position = moved(position, event)
    assert position == Position(1, 1000)
    one = entry(GATE, position, 4)
    points = {(point.name, point.axis, point.step): point.value for point in one.points}
    assert points["gate/val_gain", "iteration", 1] == points["tokens/gate/val_gain", "tokens", 1000] == 0.2
    assert not [name for name, *_ in points if name.endswith(("local_gain", "labelled_gain"))]  # nan, None
    assert one.texts == {"text/gate": "accepted: draft, demos, gain +0.200 [0.100, 0.300] on 8 of 32 examples. why"}


def test_scalars_and_texts_of_every_event(tmp_path):
    seen = {type(event) for event in (begin(tmp_path), END, *RUN, *OTHERS)}
    assert seen == {*events.OF_COMMANDS, *events.OF_RUNS}
    documented = (tracker_module.Path(__file__).parents[2] / "docs" / "trackers.md").read_text(encoding="utf-8")
    for event in (begin(tmp_path), END, *RUN, *OTHERS):
        scalars, texts = scalars_and_texts(event)
        assert scalars or texts or isinstance(event, events.Blame)
        for name in (*scalars, *texts):
            assert len(name) < 150 and name.isascii() and not set(name) & set("[]<>{}\n"), name
            general = name.replace("draft", "COMPONENT").replace("test/", "SPLIT/")
            general = general if "-" not in general else f"{general.rpartition('/')[0]}/COMPONENT"
            general = "train/METRIC" if general.startswith("train/") else general
            general = "weights/COMPONENT/METRIC" if general.startswith("weights/") else general
            assert f"`{general}`" in documented, name
        assert all(len(text) < 30_000 for text in texts.values())


def test_no_key_reaches_a_tracker(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "very-secret-key")
    leak = dataclasses.replace(OTHERS[4], reason="very-secret-key", component="very-secret-key")
    for event in (begin("/runs/very-secret-key"), leak):
        scalars, texts = scalars_and_texts(event)
        assert "very-secret-key" not in repr((scalars, texts))
    assert "https://host/v1" in scalars_and_texts(begin(tmp_path))[1]["text/settings"]
    assert "pass" not in scalars_and_texts(begin(tmp_path))[1]["text/settings"]


def read_tensorboard(folder):
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    scalars, texts = {}, {}
    for file in sorted(folder.iterdir()):
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "text":
                    texts.setdefault(value.tag, []).append(value.tensor.string_val[0].decode())
                else:
                    scalars.setdefault(value.tag, []).append((event.step, round(value.tensor.float_val[0], 6)))
    return scalars, texts


def test_tensorboard_has_scalars_and_texts_before_the_end(tmp_path):
    tracked = Tracker("tensorboard", TensorBoard())
    tracked(begin(tmp_path))
    for event in RUN:
        tracked(event)
    scalars, texts = read_tensorboard(tmp_path / "tensorboard")  # as a killed command leaves it
    assert scalars["search/val_score"] == [(0, 0.25), (1, 0.5)]
    assert scalars["tokens/search/val_score"] == [(1000, 0.25), (2000, 0.5)]
    assert scalars["test/optimized"] == [(1, 0.4)] and scalars["train/loss"] == [(0, 0.75)]
    assert texts["text/pick"] == ["draft (gap)"] and "Do it." in texts["text/accepted/draft"][0]
    tracked(END)
    assert read_tensorboard(tmp_path / "tensorboard")[1]["text/end"] == ["finished"]


def test_tensorboard_that_cannot_write_is_told_of_once(tmp_path):
    (tmp_path / "tensorboard").write_text("in the way")
    lines = []
    told = Callbacks([Tracker("tensorboard", TensorBoard())], lines.append, grace=5)
    for event in (begin(tmp_path), *RUN, END):
        told.tell(event)
    told.close()
    assert len(lines) == 1 and "callback 'tensorboard' raised" in lines[0]


@pytest.mark.parametrize("name", [name for name in TRACKERS if name != "tensorboard"])
def test_a_missing_library_is_told_of_in_one_line(name, monkeypatch):
    def missing(package):
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(TrackerError, match=rf"needs .*, which is not installed: pip install 'optimas_jax\[{name}\]'"):
        tracker(name)
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "0.0.1")
    with pytest.raises(TrackerError, match=r"needs .*>=.*,<.*, and 0\.0\.1 is installed"):
        with_trackers([], f"tensorboard,{name}")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("tensorbord", {}, r"there is no tracker 'tensorbord'; did you mean 'tensorboard'\? known: tensorboard, wandb"),
        (3, {}, "there is no tracker 3; known"),
        (HOSTILE, {}, "there is no tracker "),
        ("tensorboard", {"x": 1}, "too many|unexpected|got an unexpected keyword argument 'x'"),
        ("otel", {"conten": True}, "got an unexpected keyword argument 'conten'"),
    ],
)
def test_what_is_no_tracker_is_refused(name, options, message):
    with pytest.raises(TrackerError, match=message) as raised:
        tracker(name, **options)
    assert len(str(raised.value)) < 300
    with pytest.raises(ValueError, match=r"unknown; did you mean 'wandb'\?"):
        tracker_names("wanbd")
    with pytest.raises(ValueError, match="named twice"):
        tracker_names("wandb,wandb")


def test_a_tracker_that_is_given_takes_the_place_of_the_one_in_the_settings():
    given = tracker("tensorboard")
    assert with_trackers([given, print], "tensorboard") == (given, print)
    assert [one.__name__ for one in with_trackers([print], "tensorboard")] == ["print", "tensorboard"]
    assert with_trackers([print], "") == (print,)


# W&B and MLflow as far as they are used


class FakeRun:
    def __init__(self, id="own"):
        self.id, self.rows, self.finished, self.summary = id, [], None, {}
        self.config: Any = {}

    def define_metric(self, name, **options):
        pass

    def log(self, row):
        self.rows.append(row)

    def finish(self, exit_code):
        self.finished = exit_code


def fake_wandb(monkeypatch, active=None):
    runs = []
    monkeypatch.setattr(wandb_module, "_WRITTEN", 0.0)
    monkeypatch.setattr(wandb_module, "last_number", lambda folder, run, key: -1)

    def init(*, project=None, name=None, dir=None, config=None, id=None, resume=None, settings=None, mode=None):
        runs.append((FakeRun(), {"project": project, "name": name, "config": config, "id": id, "resume": resume}))
        return runs[-1][0]

    library = SimpleNamespace(
        run=active,
        init=init,
        Settings=lambda **options: options,
        setup=lambda: SimpleNamespace(settings=SimpleNamespace(mode="online")),
        login=lambda prompt, verify: False,
    )
    monkeypatch.setitem(sys.modules, "wandb", library)
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "0.31.0")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return library, runs


def whole_run(tracked, folder, **changes):
    for event in (begin(folder, **changes), *RUN, END):
        tracked(event)


def test_wandb_begins_and_ends_a_run_of_its_own(monkeypatch, tmp_path):
    library, runs = fake_wandb(monkeypatch)
    with pytest.raises(TrackerError, match="wandb has no key of yours: run `wandb login`"):
        tracker("wandb")
    with pytest.raises(TrackerError, match="unexpected keyword argument 'projekt'"):
        tracker("wandb", projekt="x")
    library.login = lambda prompt, verify: True
    whole_run(tracker("wandb", project="mine"), tmp_path)
    [(run, options)] = runs
    assert options["project"] == "mine" and options["name"] == tmp_path.name and options["resume"] is None
    assert options["config"]["optimize.iterations"] == 2 and options["config"]["server.base_url"] == "https://host/v1"
    assert run.finished == 0
    assert {"search/val_score": 0.25, "iteration": 0, "tokens": 1000}.items() <= run.rows[3].items()
    (tmp_path / "trackers" / "wandb.json").write_text('{"id": "own", "logged": 3}')
    for event in RUN[:3]:
        append_lines(tmp_path / "journal.jsonl", [json_line(events.to_json(event))])
    tracked = tracker("wandb")
    for event in (begin(tmp_path, resumed=True, earlier=3), *RUN[3:]):
        tracked(event)
    assert runs[1][1]["id"] == "own" and runs[1][1]["resume"] == "allow"
    assert [row for row in run.rows if "search/val_score" in row][1:] == [
        row for row in runs[1][0].rows if "search/val_score" in row
    ]


def test_wandb_attaches_to_an_active_run_and_leaves_it_open(monkeypatch, tmp_path):
    active = FakeRun("theirs")
    _, runs = fake_wandb(monkeypatch, active)
    active.config = SimpleNamespace(update=lambda values, allow_val_change: active.rows.append(values))
    whole_run(tracker("wandb"), tmp_path)
    assert not runs and active.finished is None and len(active.rows) > len(RUN)
    assert active.rows[0]["optimas_jax"]["optimize.iterations"] == 2


class FakeMlflow(SimpleNamespace):
    """Runs with what was logged to them."""

    def __init__(self, active=""):
        self.metrics, self.params, self.texts, self.ended, self.started = [], [], {}, [], []
        self.active = active

    def active_run(self):
        return SimpleNamespace(info=SimpleNamespace(run_id=self.active)) if self.active else None

    def start_run(self, run_id=None, run_name=None, experiment_id=None):
        self.started.append((run_id, run_name))
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id or "own"))

    def end_run(self, status):
        self.ended.append(status)

    def MlflowClient(self):  # noqa: N802
        return SimpleNamespace(log_text=self._text, log_batch=self._batch)

    def _text(self, run_id, text, file):
        assert file not in self.texts
        self.texts[file] = text

    def _batch(self, run_id, metrics=(), params=(), synchronous=False):
        assert synchronous and len(params) <= 100
        self.metrics += [(run_id, *metric) for metric in metrics]
        self.params += params


@pytest.mark.parametrize("active", ["", "theirs"])
def test_mlflow_begins_a_run_or_attaches_to_the_active_one(monkeypatch, tmp_path, active):
    library = FakeMlflow(active)
    monkeypatch.setitem(sys.modules, "mlflow", library)
    entities = SimpleNamespace(Metric=lambda *values: values, Param=lambda *values: values)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "3.17.2")
    tracked = tracker("mlflow")
    library.active = ""  # in the tracker's thread there is none
    whole_run(tracked, tmp_path)
    assert library.started == ([] if active else [(None, tmp_path.name)])
    assert library.ended == ([] if active else ["FINISHED"])
    assert {run_id for run_id, *_ in library.metrics} == {active or "own"}
    assert ("optimas_jax." * bool(active) + "optimize.iterations", "2") in library.params
    assert library.texts["text/pick/000003-pick.txt"] == "draft (gap)"
    assert [row[4] for row in library.metrics if row[1] == "tokens/search/val_score"] == [1000, 2000]


# Calls of language models


def request(content, **changes):
    options = {"max_tokens": 8, "temperature": 0.5, "seed": 3, "role": "draft", **changes}
    return CompletionRequest("openai:m-1", (Message("system", "Be short."), Message("user", content)), **options)


def test_calls_are_told_of_once_and_not_when_the_tape_answers(tmp_path):
    told = []
    for _ in range(2):
        tape = Tape(tmp_path / "tape.sqlite")
        taped = TapedCompleter(tape, Ledger(), ScriptedCompleter(lambda one: "fine"), told.append)
        asyncio.run(taped.complete(request("Hi")))
        tape.close()
    [call] = told
    assert (call.provider, call.model, call.component, call.answer, call.outcome) == (
        "openai", "m-1", "draft", "fine", "ok",
    )  # fmt: skip
    assert call.began <= call.ended and call.seed == 3
    attributes = call_attributes(call)
    assert attributes["gen_ai.operation.name"] == "chat" and attributes["gen_ai.provider.name"] == "openai"
    assert attributes["gen_ai.request.model"] == "m-1" and attributes["gen_ai.usage.input_tokens"] == call.prompt_tokens
    assert attributes["gen_ai.response.finish_reasons"] == ["stop"]
    assert not [name for name in attributes if "messages" in name]


def test_what_was_said_has_the_form_of_the_conventions_without_keys(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "very-secret-key")
    told = []
    tape = Tape(tmp_path / "tape.sqlite")
    taped = TapedCompleter(tape, Ledger(), ScriptedCompleter(lambda one: "it is very-secret-key"), told.append)
    asyncio.run(taped.complete(request("key: very-secret-key, \u2028")))
    tape.close()
    said = content_attributes(told[0])
    assert json.loads(said["gen_ai.input.messages"]) == [
        {"role": "system", "parts": [{"type": "text", "content": "Be short."}]},
        {"role": "user", "parts": [{"type": "text", "content": "key: ***, \u2028"}]},
    ]
    answer = {"type": "text", "content": "it is ***"}
    assert json.loads(said["gen_ai.output.messages"]) == [
        {"role": "assistant", "parts": [answer], "finish_reason": "stop"}
    ]


def test_a_call_that_raises_is_told_of_with_its_error(tmp_path):
    def broken(one):
        raise RuntimeError("no")

    told = []
    tape = Tape(tmp_path / "tape.sqlite")
    with pytest.raises(RuntimeError):
        asyncio.run(TapedCompleter(tape, Ledger(), ScriptedCompleter(broken), told.append).complete(request("Hi")))
    tape.close()
    attributes = call_attributes(told[0])
    assert attributes["error.type"] == "RuntimeError" and "gen_ai.response.finish_reasons" not in attributes


def test_a_callback_with_on_call_is_told_of_calls(tmp_path):
    class Both:
        def __init__(self):
            self.told = []

        def __call__(self, event):
            self.told.append(events.name_of(event))

        def on_call(self, call):
            self.told.append(call)

    both, lines = Both(), []
    told = Callbacks([both, print], lines.append, grace=5)
    told.tell(END)
    assert told.teller_of_calls is not None
    call = call_of(request("Hi"), RuntimeError("no"), "optimize", 1.0, 2.0)
    told.teller_of_calls(call)
    told.close()
    assert both.told == ["end", call] and not lines
    assert Callbacks([print], lines.append, grace=5).teller_of_calls is None
