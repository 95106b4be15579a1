import asyncio
import contextlib
import dataclasses
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import ScriptedCompleter, request
from runs import ROOT, run_config

from optimas_jax.core.folder import events
from optimas_jax.core.folder.files import read_rows
from optimas_jax.core.types import StopRun
from optimas_jax.core.usage import Usage
from optimas_jax.core.values import Configuration, Demo, Hyperparameters, Prompt
from optimas_jax.llm.accounts.ledger import Ledger
from optimas_jax.llm.tapes.tape import Tape
from optimas_jax.llm.tapes.taped import TapedCompleter
from optimas_jax.loop.config import EvaluateConfig
from optimas_jax.loop.folder.bought import check_tape
from optimas_jax.loop.journal import FolderError, RunFolder, config_of, load_best
from optimas_jax.parallel.mesh import MeshConfig

CONFIG = run_config()
BROKEN = [b"", b"{", b"[]", b"123", b"{}", b"null", b"\xff\xfe", b"\x00", b"[" * 100_000, b"9" * 5000, b'{"event": 5}']


def folder(path, **changes):
    return RunFolder(path / "run", dataclasses.replace(CONFIG, **changes))


def journal(path):
    return path / "run" / "journal.jsonl"


def names_in(path):
    return [json.loads(line)["event"] for line in journal(path).read_text(encoding="utf-8").splitlines()]


_TESTED = {"iteration": 0, "component": "a", "kind": "opro", "val_gain": 0.5, "ci95": (0.0, 1.0), "p_value": 0.25}
_RACED = {"value": "0123", "expected_gain": 1.0, "labelled_gain": None, "local_gain": 0.5, "n": 8, "accepted": True}
SAMPLES = {
    "groups": events.Groups(component="a", groups=2, informative=1, stopped="one\nline"),
    "pick": events.Pick(iteration=0, component="a", rule="gap"),
    "gate": events.Gate(**_TESTED, **_RACED),
    "accept": events.Accept(**_TESTED, value=Prompt("Say."), val_score=1.0, covered=True, id="0-a-0123", parent="ab"),
    "curve": events.Curve(at="start", iteration=0, val_score=0.5, spent=Usage(calls=2, usd=0.25)),
    "adaptation": events.Adaptation(
        fresh_groups=2, fresh_pairs=0, pair_accuracy_before=None, trained=False, reward="r"
    ),
    "evaluation": events.Evaluation(split="test", n=2, gain={"mean": 0.5, "ci95": (0.0, 1.0), "p_value": 0.5}),
}


def emit_all(path, *names):
    opened = folder(path)
    for name in names:
        opened.emit(SAMPLES[name])
    return opened


def break_disk(monkeypatch, operation, name=""):
    """Lets an operation of ``Path`` fail as on a full disk."""
    original = getattr(Path, operation)

    def fail(self, *args, **kwargs):
        if name not in self.name:
            return original(self, *args, **kwargs)
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, operation, fail)


# Whose folder it is


def test_the_same_configuration_opens_its_folder_again(tmp_path):
    first, second = folder(tmp_path), folder(tmp_path)
    assert first.path == second.path == tmp_path / "run"
    assert json.loads((first.path / "config.json").read_text())["benchmark"] == "hotpotqa"


def test_a_folder_is_one_processs_at_a_time(tmp_path):
    opened = emit_all(tmp_path, "groups")
    code = (
        "import pathlib, sys; sys.path[:0] = ['tests', 'tests/loop']\n"
        "from test_run_folder import folder\n"
        f"try: folder(pathlib.Path({str(tmp_path)!r}))\n"
        "except Exception as error: print(type(error).__name__, error)\n"
        "else: print('opened')"
    )

    def other_process():
        command = [sys.executable, "-c", code]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout

    assert other_process().startswith("FolderError another process runs in ")
    opened.close()
    opened.close()
    with pytest.raises(FolderError, match="belongs to another configuration"):
        folder(tmp_path, seed=77)
    assert other_process() == "opened\n"


def test_another_configuration_is_refused_with_every_field_that_differs(tmp_path):
    emit_all(tmp_path, "groups")
    data = dataclasses.replace(CONFIG.data, train=CONFIG.data.train + 1)
    with pytest.raises(FolderError) as caught:
        folder(tmp_path, seed=7, data=data)
    message = str(caught.value)
    assert f"config.seed: {CONFIG.seed} -> 7\n" in message
    assert f"config.data.train: {CONFIG.data.train} -> {data.train}\n" in message
    assert message.count(" -> ") == 2
    assert "--workdir" in message
    assert issubclass(FolderError, StopRun)


def test_what_does_not_change_results_may_differ(tmp_path):
    emit_all(tmp_path, "groups")
    folder(tmp_path, concurrency=1, mesh=MeshConfig(2, 2), evaluate=EvaluateConfig(split="val", repeats=3))
    assert config_of(tmp_path / "run").concurrency == 1  # what measurements after a search go by


def test_a_folder_that_nothing_was_paid_in_takes_another_configuration(tmp_path):
    folder(tmp_path, seed=6)
    file = tmp_path / "run" / "tape.sqlite"
    Tape(file).close()
    assert config_of(folder(tmp_path, seed=7).path).seed == 7
    with contextlib.closing(Tape(file)) as tape:
        asyncio.run(TapedCompleter(tape, Ledger(), ScriptedCompleter(lambda asked: "paid")).complete(request("a")))
    with pytest.raises(FolderError, match=r"config\.seed: 7 -> 8"):
        folder(tmp_path, seed=8)


def test_a_folder_of_an_earlier_version_is_refused_and_stays_as_it_was(tmp_path):
    file = folder(tmp_path).path / "config.json"
    earlier = json.loads(file.read_text())
    del earlier["align"]
    file.write_text(json.dumps(earlier))
    with pytest.raises(FolderError, match=r"was made by an earlier version, .* use another --workdir"):
        folder(tmp_path)
    assert json.loads(file.read_text()) == earlier


def test_a_damaged_configuration_says_so(tmp_path):
    file = folder(tmp_path).path / "config.json"
    file.write_text(file.read_text()[:20])
    with pytest.raises(FolderError, match=r"config\.json is damaged .*use another --workdir"):
        folder(tmp_path)


@pytest.mark.parametrize("content", [content for content in BROKEN if content not in (b"{}", b'{"event": 5}')])
def test_a_configuration_that_is_none_says_so(tmp_path, content):
    (folder(tmp_path).path / "config.json").write_bytes(content)
    with pytest.raises(FolderError, match=r"config\.json is damaged"):
        folder(tmp_path)


def test_a_folder_that_cannot_be_made_says_so(tmp_path):
    (tmp_path / "run").write_text("in the way")
    with pytest.raises(FolderError, match="cannot write to"):
        folder(tmp_path)


# The journal


def test_events_are_appended_as_they_happen(tmp_path):
    emit_all(tmp_path, "pick", "gate")
    first = json.loads(journal(tmp_path).read_text().splitlines()[0])
    assert first.pop("time") > 0
    assert first == {"event": "pick", "iteration": 0, "component": "a", "rule": "gap"}
    assert names_in(tmp_path) == ["pick", "gate"]


def test_a_resumed_run_does_not_write_its_events_twice(tmp_path):
    emit_all(tmp_path, "pick", "gate")
    before = journal(tmp_path).read_text()
    emit_all(tmp_path, "pick", "gate", "adaptation")
    assert journal(tmp_path).read_text().startswith(before)
    assert names_in(tmp_path) == ["pick", "gate", "adaptation"]


def test_another_course_of_events_goes_on_behind_the_old_one(tmp_path):
    emit_all(tmp_path, "pick", "gate")
    emit_all(tmp_path, "pick", "accept", "gate")
    assert names_in(tmp_path) == ["pick", "gate", "accept", "gate"]


def test_wherever_the_last_write_stopped_the_journal_is_repaired(tmp_path):
    emit_all(tmp_path, "pick", "gate")
    whole = journal(tmp_path).read_bytes()
    start = whole.index(b"\n") + 1
    for stop in range(start, len(whole)):
        journal(tmp_path).write_bytes(whole[:stop])
        resumed = folder(tmp_path)
        kept = journal(tmp_path).read_bytes()
        assert kept == (whole if stop == len(whole) - 1 else whole[:start])  # only the line end was missing
        assert not list(resumed.path.glob("*.partial"))
    emit_all(tmp_path, "pick", "gate", "adaptation")
    assert names_in(tmp_path) == ["pick", "gate", "adaptation"]


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("broken", [None, *BROKEN[1:]])
def test_a_damaged_event_loses_nothing_and_a_resumed_run_mends_it(tmp_path, index, broken):
    names = ("pick", "gate", "accept", "curve")
    emit_all(tmp_path, *names)
    lines = journal(tmp_path).read_bytes().splitlines()
    lines[index] = lines[index][:30] if broken is None else broken
    journal(tmp_path).write_bytes(b"\n".join(lines) + b"\n")
    opened = folder(tmp_path)
    assert opened.damaged == 1
    kept = journal(tmp_path).read_text().splitlines()
    assert json.loads(kept[index])["damaged"].encode().startswith(lines[index][:20].replace(b"\xff\xfe", b"\\xff\\xfe"))
    assert [json.loads(line)["event"] for line in kept[:index] + kept[index + 1 :]] == [
        name for name in names if name != names[index]
    ]
    assert [row["event"] for row in read_rows(journal(tmp_path))] == [n for n in names if n != names[index]]
    emit_all(tmp_path, *names, "evaluation")
    assert names_in(tmp_path) == [*names, "evaluation"]


def test_a_later_stage_takes_no_damaged_place(tmp_path):
    emit_all(tmp_path, "pick", "gate")
    journal(tmp_path).write_bytes(b"{\n" + journal(tmp_path).read_bytes().splitlines()[1] + b"\n")
    emit_all(tmp_path, "evaluation")
    assert [row["event"] for row in read_rows(journal(tmp_path))] == ["gate", "evaluation"]
    emit_all(tmp_path, "pick", "gate", "evaluation")
    assert names_in(tmp_path) == ["pick", "gate", "evaluation"]


def test_a_damaged_proposal_is_kept_and_written_again(tmp_path):
    rows = [{"id": str(number), "race": None, "gate": None} for number in range(3)]
    folder(tmp_path).append_new("proposals.jsonl", rows)
    file = tmp_path / "run" / "proposals.jsonl"
    file.write_text(file.read_text().replace('{"id": "1"', '{"id: "1"'))
    folder(tmp_path).append_new("proposals.jsonl", rows)
    assert [row["id"] for row in read_rows(file)] == ["0", "2", "1"]
    assert json.loads(file.read_text().splitlines()[1])["damaged"].startswith('{"id: "1"')
    before = file.read_text()
    folder(tmp_path).append_new("proposals.jsonl", rows)
    assert file.read_text() == before


def test_a_damaged_row_is_named_by_its_line(tmp_path):
    emit_all(tmp_path, "pick", "gate")
    journal(tmp_path).write_text(journal(tmp_path).read_text().replace('{"event": "gate"', '{"event": 7'))
    with pytest.raises(FolderError, match=r"journal\.jsonl, line 2 is damaged \(event: .*mends it"):
        read_rows(journal(tmp_path))


def test_what_no_line_can_hold_is_written_as_text(tmp_path):
    for _ in range(2):
        folder(tmp_path).emit(events.Epoch(epoch=0, metrics={"loss": float("nan"), "\ud800 half": 1e400}))
    [row] = read_rows(journal(tmp_path))
    assert (row["loss"], row["\ufffd half"]) == ("nan", "inf")


def test_a_write_that_stopped_within_a_character_is_repaired(tmp_path):
    folder(tmp_path).emit(events.Dropped(iteration=0, component="a", reason="empty", text="é"))
    whole = journal(tmp_path).read_bytes()
    journal(tmp_path).write_bytes(whole + whole[: whole.index("é".encode()) + 1])
    folder(tmp_path)
    assert journal(tmp_path).read_bytes() == whole


def test_only_line_feeds_end_an_event(tmp_path):
    for _ in range(2):
        folder(tmp_path).emit(events.Dropped(iteration=0, component="a", reason="empty", text="one\u2028two\x85three"))
    assert journal(tmp_path).read_bytes().count(b"\n") == 1


def test_a_repair_on_a_full_disk_stops_the_run_and_loses_nothing(tmp_path, monkeypatch):
    emit_all(tmp_path, "pick")
    broken = journal(tmp_path).read_bytes() + b"{"
    journal(tmp_path).write_bytes(broken)
    break_disk(monkeypatch, "replace", "journal")
    with pytest.raises(FolderError, match="No space left"):
        folder(tmp_path)
    assert journal(tmp_path).read_bytes() == broken


def test_a_journal_on_a_full_disk_stops_the_run(tmp_path, monkeypatch):
    opened = emit_all(tmp_path, "pick")

    def fail(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(FolderError, match=r"cannot write journal.jsonl .*No space left"):
        opened.emit(SAMPLES["gate"])


# Files


def test_what_was_written_is_read(tmp_path):
    opened = folder(tmp_path)
    assert opened.read("notes.json") is None
    opened.write("deep/notes.json", {"mean": 0.5, "text": "ü\u2028"})
    assert opened.read("deep/notes.json") == {"mean": 0.5, "text": "ü\u2028"}
    assert [file.name for file in (opened.path / "deep").iterdir()] == ["notes.json"]


def test_a_damaged_file_says_so(tmp_path):
    opened = folder(tmp_path)
    (opened.path / "reward.json").write_text("{")
    with pytest.raises(FolderError, match=r"reward\.json is damaged"):
        opened.read("reward.json")


@pytest.mark.parametrize("operation", ["open", "replace", "mkdir"])
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, operation):
    opened = folder(tmp_path)
    opened.write("notes.json", {"n": 1})
    break_disk(monkeypatch, operation)
    with pytest.raises(FolderError, match=r"cannot write .*No space left.*run the same command again"):
        opened.write("notes.json", {"n": 2})
    monkeypatch.undo()
    assert opened.read("notes.json") == {"n": 1}
    opened.write("notes.json", {"n": 2})
    assert opened.read("notes.json") == {"n": 2}


def test_a_new_folder_on_a_full_disk_is_no_folder_of_another_configuration(tmp_path, monkeypatch):
    break_disk(monkeypatch, "open", "config.json")
    with pytest.raises(FolderError, match="No space left"):
        folder(tmp_path)
    monkeypatch.undo()
    folder(tmp_path, seed=7)


# The portable result


def test_the_best_configuration_survives_the_round_trip(tmp_path):
    best = Configuration(
        {
            "speaker": Prompt("Say\nit.", (Demo({"q": "où?", "list": (1, 2)}, {"said": "là"}),)),
            "retriever": Hyperparameters({"k": 5}),
        }
    )
    opened = folder(tmp_path)
    opened.save_best(best, {"val_score": 0.5})
    assert load_best(opened.path / "best") == best
    assert opened.read("best/configuration.json")["val_score"] == 0.5


def test_a_missing_result_names_the_stage_that_makes_it(tmp_path):
    with pytest.raises(FolderError, match=r"neither a run with a finished search nor its best"):
        load_best(tmp_path / "best")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"configuration": {',
        b"\xff\xfe",
        b"{}",
        b"[]",
        b"null",
        b'{"configuration": 3}',
        b'{"configuration": {"a": 3}}',
        b'{"configuration": {"a": {"type": "spell"}}}',
        b'{"configuration": {"a": {"type": "prompt"}}}',
    ],
)
def test_a_damaged_result_says_so(tmp_path, content):
    (tmp_path / "configuration.json").write_bytes(content)
    said = r"configuration\.json is (damaged|not a saved configuration) \(.*--stage=optimize again"
    with pytest.raises(FolderError, match=said):
        load_best(tmp_path)


def test_a_tape_of_attempts_without_results_belongs_to_its_folder(tmp_path):
    """As a server that answers nobody leaves it: the bill counts attempts, and the same command goes on."""
    run = folder(tmp_path)
    run.write("spent.json", {"collect": Usage(calls=3).to_json()})
    with contextlib.closing(Tape(tmp_path / "tape.sqlite")) as tape:
        with pytest.raises(FolderError, match="results of 3 calls"):
            check_tape(run, tape)
        asyncio.run(tape.begin("a request", Usage(calls=1)))
        check_tape(run, tape)
