"""Trackers with the real libraries: all get the same scalars and texts, also from a run that is killed and resumed.

They need the extras wandb, mlflow and otel; ``.ci/long trackers`` installs them.
"""

import collections
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from runs import ROOT

from optimas_jax.core.folder.events import End, read_events
from optimas_jax.report.trackers.points import Position, entry, moved

MISSING = [name for name in ("wandb", "mlflow", "opentelemetry") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore"),  # of the libraries
    pytest.mark.skipif(bool(MISSING), reason=f"no {', '.join(MISSING)}: pip install 'optimas_jax[wandb,mlflow,otel]'"),
]


def start(folder, *arguments):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    command = [sys.executable, str(ROOT / "tests" / "tracked_program.py"), str(folder), *arguments]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(process):
    output, _ = process.communicate(timeout=600)
    return process.returncode, output


def lines(folder):
    path = folder / "run" / "journal.jsonl"
    return path.read_text(encoding="utf-8").count("\n") if path.is_file() else 0


def logged(folder, name):
    path = folder / "run" / "trackers" / f"{name}.json"
    return json.loads(path.read_text())["logged"] if path.is_file() else 0


def expected(folder, count=None):
    """Scalars and texts of the first events of the journal."""
    scalars, texts, position = collections.Counter(), collections.Counter(), Position()
    for event in read_events(folder / "run")[:count]:
        position = moved(position, event)
        one = entry(event, position)
        scalars.update((point.name, point.step, round(point.value, 4)) for point in one.points)
        texts.update(one.texts.items())
    return scalars, texts


def of_commands(name):
    return name.startswith(("spent/", "text/begin", "text/settings", "text/end"))


def without_commands(scalars, texts):
    return (
        collections.Counter({key: number for key, number in scalars.items() if not of_commands(key[0])}),
        collections.Counter({key: number for key, number in texts.items() if not of_commands(key[0])}),
    )


def tensorboard(folder):
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    scalars, texts = collections.Counter(), collections.Counter()
    for file in (folder / "run" / "tensorboard").iterdir():
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "text":
                    texts[value.tag, value.tensor.string_val[0].decode()] += 1
                else:
                    scalars[value.tag, event.step, round(value.tensor.float_val[0], 4)] += 1
    return scalars, texts


def records(data):
    """The records of a file of W&B: parts in blocks of 32 KiB, behind 7 letters of the whole file."""
    at, whole = 7, b""
    while at + 7 <= len(data):
        if 32_768 - at % 32_768 < 7:
            at += 32_768 - at % 32_768
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4) and at <= len(data):  # whole, or the last part
            yield whole
            whole = b""


def wandb(folder):
    from wandb.proto import wandb_internal_pb2

    scalars, texts = collections.Counter(), collections.Counter()
    ids = set()
    for file in (folder / "run" / "wandb").glob("offline-run-*/run-*.wandb"):
        for data in records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.HasField("run"):
                ids.add(record.run.run_id)
            if not record.HasField("history"):
                continue
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            for name, value in row.items():
                axis = "tokens" if name.startswith("tokens/") else "epoch" if name.startswith("train/") else "iteration"
                if name.startswith("text/"):
                    texts[name, value] += 1
                elif "/" in name:
                    scalars[name, row[axis], round(value, 4)] += 1
    assert len(ids) == 1
    return scalars, texts


def mlflow(folder):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    [run] = client.search_runs(["0"])
    scalars, texts = collections.Counter(), collections.Counter()
    for name in run.data.metrics:
        scalars.update(
            (name, one.step, round(one.value, 4)) for one in client.get_metric_history(run.info.run_id, name)
        )
    assert run.info.run_name == "run" and run.data.params["optimize.iterations"] == "3"

    def files(path):
        for one in client.list_artifacts(run.info.run_id, path):
            yield from files(one.path) if one.is_dir else [one.path]

    for file in files(None):
        path = client.download_artifacts(run.info.run_id, file)
        with open(path, encoding="utf-8") as text:
            texts[file.rpartition("/")[0], text.read()] += 1
    return scalars, texts, run.info.status


def spans(folder):
    return [json.loads(line) for line in (folder / "spans.jsonl").read_text().splitlines()]


def otel(folder):
    scalars, texts = collections.Counter(), collections.Counter()
    for span in spans(folder):
        for name, value in span["attributes"].items():
            kind, _, rest = name.removeprefix("optimas.").partition(".")
            axis = "tokens" if rest.startswith("tokens/") else "epoch" if rest.startswith("train/") else "iteration"
            if kind == "scalar":
                scalars[rest, span["attributes"][f"optimas.{axis}"], round(value, 4)] += 1
            elif kind == "text":
                texts[rest, value] += 1
    return scalars, texts


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    code, output = finish(start(folder))
    assert code == 0 and "warning" not in output, output
    return folder


def check(folder, *, killed=False):
    scalars, texts = expected(folder)
    assert len(scalars) > 40 and len(texts) > 10
    for name, found in (("tensorboard", tensorboard(folder)), ("wandb", wandb(folder)), ("otel", otel(folder))):
        rows = without_commands(*found)
        if killed and name == "otel":  # a span is sent before it is noted: the event between both is sent again
            assert scalars <= rows[0] and texts <= rows[1]
            entries = [entry(event, Position()) for event in read_events(folder / "run")]
            most = max(len(one.points) + len(one.texts) for one in entries)
            assert (rows[0] - scalars).total() + (rows[1] - texts).total() <= most
        else:
            assert rows == (scalars, texts), name
    assert without_commands(*mlflow(folder)[:2]) == (scalars, texts)


def test_all_trackers_get_the_same_scalars_and_texts(whole):
    check(whole)
    of_command = [{key for key in (*found[0], *found[1]) if of_commands(key[0])} for found in (
        tensorboard(whole), wandb(whole), otel(whole), mlflow(whole)
    )]  # fmt: skip
    assert of_command[0] == of_command[1] == of_command[2] == of_command[3] != set()
    assert mlflow(whole)[2] == "FINISHED"


def test_calls_are_spans_of_the_conventions_below_their_iteration(whole, tmp_path):
    found = spans(whole)
    ids = {span["context"]["span_id"]: span for span in found}
    calls = [span for span in found if "gen_ai.operation.name" in span["attributes"]]
    assert len(calls) > 100 and len({span["context"]["trace_id"] for span in found}) == 1
    around = {ids[span["parent_id"]]["name"] for span in calls}
    assert {"optimize run", "iteration 0", "iteration 1", "iteration 2"} >= around >= {"optimize run", "iteration 0"}
    assert {span["name"] for span in calls} == {"text_completion scripted"}
    for span in calls:
        assert span["attributes"]["gen_ai.request.model"] == "scripted" and span["kind"] == "SpanKind.INTERNAL"
        assert span["attributes"]["gen_ai.usage.input_tokens"] >= 0 and span["status"]["status_code"] == "UNSET"
    from optimas_jax.traces.read import read_traces  # which reads what other libraries write by these conventions

    (tmp_path / "spans.jsonl").write_text("".join(json.dumps(span) + "\n" for span in calls))
    assert len(read_traces(str(tmp_path / "spans.jsonl")).calls) == len(calls)


def test_the_same_command_again_logs_nothing(whole):
    before = tensorboard(whole), wandb(whole), mlflow(whole), len(spans(whole))
    code, output = finish(start(whole))
    assert code == 0, output
    assert (tensorboard(whole), wandb(whole), mlflow(whole), len(spans(whole))) == before


def test_a_killed_run_has_what_was_logged_and_goes_on(tmp_path):
    process = start(tmp_path, "0.01")
    deadline = time.monotonic() + 400
    while min(logged(tmp_path, name) for name in ("tensorboard", "wandb", "mlflow", "otel")) < 8:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    finish(process)
    time.sleep(3)  # W&B writes in a process of its own
    assert not any(isinstance(event, End) for event in read_events(tmp_path / "run"))
    found = {"tensorboard": tensorboard(tmp_path), "wandb": wandb(tmp_path), "otel": otel(tmp_path)}
    found["mlflow"] = mlflow(tmp_path)[:2]
    for name, (scalars, texts) in found.items():
        least = expected(tmp_path, logged(tmp_path, name))
        most = expected(tmp_path)
        assert least[0] <= without_commands(scalars, texts)[0] <= most[0], name
        assert least[1] <= without_commands(scalars, texts)[1] <= most[1], name
    code, output = finish(start(tmp_path))
    assert code == 0 and "warning" not in output, output
    check(tmp_path, killed=True)
    assert mlflow(tmp_path)[2] == "FINISHED"


def test_trackers_attach_to_runs_of_the_user(tmp_path, monkeypatch):
    import mlflow as library
    import wandb as other

    import optimas_jax as oj
    from optimas_jax.core.folder.events import Begin

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    library.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    theirs = other.init(dir=str(tmp_path), settings=other.Settings(console="off", silent=True))
    with library.start_run() as run:
        for name in ("wandb", "mlflow"):
            tracked = oj.tracker(name)
            tracked(Begin(
                folder=str(tmp_path), benchmark="b", variant="v", seed=0, stage="all", components=(), examples={},
                settings={"seed": 0}, resumed=False,
            ))  # fmt: skip
            tracked(End(finished=True, reason="", spent={}))
        assert library.active_run().info.run_id == run.info.run_id and other.run is theirs
        saved = library.MlflowClient().get_run(run.info.run_id)
        assert saved.info.status == "RUNNING" and saved.data.params == {"optimas_jax.seed": "0"}
        assert "spent/tokens" in saved.data.metrics
    theirs.finish()
    [file] = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert b"spent/tokens" in file.read_bytes()
