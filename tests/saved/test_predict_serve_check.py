"""Predictions, the server over a program, and checks, with a scripted model: no run is needed."""

import asyncio
import contextlib
import functools
import importlib.util
import json
import re
import runpy
import shutil
import socket
import sys
import urllib.error
import urllib.request

import absl.app  # its own flags are defined before ours stand apart
import pytest
import uvicorn
from absl import flags
from fakes import ScriptedCompleter
from runs import ROOT
from served import serving_app
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

import optimas_jax as oj
from optimas_jax.core.types import Outcome, StopRun
from optimas_jax.learn.store import CheckpointStore
from optimas_jax.llm.base import Completion
from optimas_jax.loop.journal import RunFolder
from optimas_jax.report.console import ConsoleProgress
from optimas_jax.result import Result
from optimas_jax.saved.check import Bench, Gate, check_bests, move
from optimas_jax.saved.check_page import MOST_EXAMPLES, check_page, move_page
from optimas_jax.saved.folder import read_folder
from optimas_jax.saved.predict import predict
from optimas_jax.saved.remote import remote_scorer
from optimas_jax.saved.serve import app_of
from optimas_jax.saved.source import record_source
from optimas_jax.server.protocol import RequestError
from optimas_jax.server.reward_app import make_reward_app
from optimas_jax.server.system_app import RunError, make_system_app

QUIET = ConsoleProgress(quiet=True)
MODULE = """
import optimas_jax as oj

say = oj.prompt("Say the word.")


async def words(question):
    if question == "odd":
        raise KeyError("odd")
    if question == "object":
        return {"answer": object()}
    return {"answer": await say(question=question)}


def right(example, made):
    return float(made["answer"] == example["wanted"])


def other(example, made):
    return 0.0
"""
ROWS = [{"id": f"q{i}", "question": f"{i}?", "wanted": str(i)} for i in range(24)]


@pytest.fixture
def module(tmp_path):
    file = tmp_path / "said.py"
    file.write_text(MODULE)
    spec = importlib.util.spec_from_file_location("said", file)
    loaded = sys.modules["said"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    yield loaded
    del sys.modules["said"]


@pytest.fixture
def model(monkeypatch):
    """Answers with the number in the question, one of five of them wrong where the instruction is rude or the model is
    another one, and fails where it says so."""

    def answer(request):
        instruction, question = request.messages[0].content, request.messages[-1].content
        number = re.search(r"Question: (\w+)", question)[1]
        if number == "refused":
            return Completion("no", Outcome.REFUSED, 1, 1)
        if number == "dead":
            return StopRun("the server does not answer")
        wrong = instruction.startswith("Rude") and int(number) % 5 < 2
        return "wrong" if wrong or (request.model == "weak" and int(number) % 2) else number

    scripted = ScriptedCompleter(answer)
    monkeypatch.setattr("optimas_jax.saved.optimized.completer_of", lambda *given: scripted)
    return scripted


def best(path, module, instruction, metric=None, **settings):
    """A run folder with a best."""
    (path / "best").mkdir(parents=True)
    prompt = {"type": "prompt", "instruction": instruction, "demos": []}
    (path / "best" / "configuration.json").write_text(json.dumps({"configuration": {"say": prompt}}))
    config = {"benchmark": "words", "seed": 3, "system": {"language_model": {"model": "scripted"}}, **settings}
    (path / "config.json").write_text(json.dumps(config))
    record_source(path, module.words, metric or module.right)
    return path


@pytest.fixture
def kind(tmp_path, module, model):
    return best(tmp_path / "kind", module, "Kindly say it.\nPlease.", optimize={"iterations": 4})


@pytest.fixture
def rude(tmp_path, module, model):
    return best(tmp_path / "rude", module, "Rudely say it.\nPlease.", optimize={"iterations": 8})


def test_a_result_needs_no_program_for_its_best(kind):
    assert Result(kind, {}).best(question="3?") == {"answer": "3"}


def test_a_best_without_its_run_knows_its_model(tmp_path, module, model):
    settings = {
        "benchmark": "words",
        "seed": 3,
        "system": {"language_model": {"model": "scripted", "max_tokens": 7}, "secret": "s"},
        "server": {"base_url": "https://me:password@host:8000/v1?key=k", "timeout": 5.0},
    }
    run = best(tmp_path / "run", module, "Say it.", **settings)
    configuration = read_folder(run).configuration
    given = ["wrong", {"model_type": "llama"}]  # what lies around the copies
    for index, around in enumerate(given):
        opened = RunFolder.__new__(RunFolder)
        opened.path = run
        opened.save_best(configuration, {"accepted": []})
        copy = shutil.copytree(run / "best", tmp_path / f"{index}" / "best")
        (copy.parent / "config.json").write_text(json.dumps(around))
        saved = read_folder(copy)
        assert saved.seed == 3 and saved.language_model() == oj.LanguageModel("scripted", max_tokens=7)
        assert saved.settings["server"] == {"base_url": "https://host:8000/v1", "timeout": 5.0}
        assert set(saved.settings) == {"seed", "system", "server"} and "secret" not in saved.settings["system"]
        assert oj.load(copy, module.words)(question="3?") == {"answer": "3"}

        old = json.loads((copy / "configuration.json").read_text())
        del old["settings"]
        (copy / "configuration.json").write_text(json.dumps(old))
        with pytest.raises(StopRun, match=r"does not say which language model .* name one with model="):
            oj.load(copy, module.words)
        assert oj.load(copy, module.words, model="scripted")(question="3?") == {"answer": "3"}


# Predictions


def test_every_row_is_answered_and_none_twice(kind, model, tmp_path):
    output, rows = tmp_path / "deep" / "out.jsonl", [*ROWS[:2], {"id": "again", "question": "1?"}]
    made = predict(oj.load(kind), rows, output, QUIET)
    assert made == [json.loads(line) for line in output.read_text().splitlines()]
    assert made[1] == {"id": "q1", "inputs": {"question": "1?"}, "outputs": {"answer": "1"}, "outcome": "ok"}
    assert [one["id"] for one in made] == ["q0", "q1", "again"]
    paid = len(model.requests)
    assert predict(oj.load(kind), rows, output, QUIET) == made and len(model.requests) == paid


def test_rows_that_fail_are_rows_with_their_outcome(kind, tmp_path):
    rows = [{"question": "refused"}, {"question": "odd"}, {"question": "object"}, {"question": "7"}]
    refused, odd, no_data, well = predict(oj.load(kind), rows, tmp_path / "out.jsonl", QUIET)
    assert (refused["id"], refused["outputs"], refused["outcome"], refused["detail"]) == (
        "row-0",
        None,
        "refused",
        "no",
    )
    assert odd["outcome"] == "crashed" and "KeyError" in odd["detail"]
    assert no_data["outcome"] == "crashed" and "is of type object" in no_data["detail"]
    assert well["outcome"] == "ok" and "detail" not in well


def test_a_key_in_a_failure_is_in_no_prediction_and_in_no_answer(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "is of type object")  # a part of what a row's failure says
    [row] = predict(oj.load(kind), [{"question": "object"}], tmp_path / "out.jsonl", QUIET)
    assert "***" in row["detail"] and "is of type object" not in (tmp_path / "out.jsonl").read_text()
    for error in (RunError(502, "crashed", row["detail"]), RunError(502, "crashed", "it is of type object")):
        assert b"is of type object" not in error.response().body
    assert "is of type object" not in str(RequestError(422, "it is of type object").to_json())


def test_a_missing_column_is_named_before_anything_is_paid(kind, model, tmp_path):
    with pytest.raises(ValueError, match="words reads question, and question is missing; given is id, text"):
        predict(oj.load(kind), [{"id": "1", "text": "a"}], tmp_path / "out.jsonl", QUIET)
    assert not model.requests and not [*tmp_path.glob("out*")]


def test_a_dead_server_ends_the_predictions_and_the_same_call_goes_on(kind, model, tmp_path):
    rows, output = [{"question": "1"}, {"question": "dead"}], tmp_path / "out.jsonl"
    with pytest.raises(StopRun, match="does not answer"):
        predict(oj.load(kind), rows, output, QUIET, concurrency=1)
    assert not output.exists()
    predict(oj.load(kind), rows[:1], output, QUIET)
    assert len(model.requests) == 2


# The server


@pytest.fixture
def address(kind):
    with serving_app(app_of(oj.load(kind)), log_level="critical") as url:
        yield url


def post(url, body):
    """Status and JSON of an answer."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data)) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with contextlib.closing(error):
            return error.code, json.load(error)


def test_the_server_answers_as_the_program_does(address, kind):
    assert post(f"{address}/run", {"question": "3?"}) == (200, oj.load(kind)(question="3?"))
    status, traced = post(f"{address}/run?trace=1", {"question": "3?"})
    call = {"component": "say", "inputs": {"question": "3?"}, "outputs": {"say": "3"}, "outcome": "ok"}
    assert (status, traced) == (200, {"outputs": {"answer": "3"}, "calls": [call]})
    with urllib.request.urlopen(f"{address}/") as about:
        assert json.load(about)["required"] == ["question"]
    with urllib.request.urlopen(f"{address}/health") as health:
        assert health.status == 200


@pytest.mark.parametrize(
    ("body", "status", "kind_of", "message"),
    [
        ({}, 400, "invalid_request_error", "question is missing"),
        ({"question": "1", "wanted": "1"}, 400, "invalid_request_error", "does not read wanted"),
        ([], 400, "invalid_request_error", "is a JSON list, expected an object"),
        (b"[" * 100_000, 400, "invalid_request_error", "the body is not JSON"),
        (b"{", 400, "invalid_request_error", "is not JSON"),
        (b" " * (8 * 2**20 + 1), 413, "invalid_request_error", "larger than 8,388,608 bytes"),
        ({"question": "refused"}, 502, "refused", "the run ended with refused at say: no"),
        ({"question": "odd"}, 500, "program_error", "raised KeyError"),
        ({"question": "object"}, 500, "program_error", "is of type object"),
        ({"question": "dead"}, 503, "unavailable", "the server does not answer"),
    ],
)
def test_what_cannot_be_answered_says_why(address, body, status, kind_of, message):
    code, answer = post(f"{address}/run", body)
    assert (code, answer["error"]["type"]) == (status, kind_of) and message in answer["error"]["message"]


@pytest.mark.parametrize(("path", "body", "status"), [("/runs", {}, 404), ("/", {}, 405)])
def test_paths_that_are_not_there_are_refused_in_json(address, path, body, status):
    code, answer = post(f"{address}{path}", body)
    assert code == status and answer["error"]["message"].startswith(f"POST {path}: ")


def test_a_method_that_is_refused_names_those_that_are_not(address):
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{address}/run")
    with refused.value:
        assert refused.value.code == 405 and refused.value.headers["allow"] == "POST"


def test_an_address_in_use_is_told_before_a_model_is_loaded(kind, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert command("serve", f"--system={kind}", f"--port={port}") == 1
    told = capsys.readouterr()
    assert f"cannot listen on 127.0.0.1:{port}" in told.err and not told.out


def test_an_address_taken_while_the_program_is_loaded_is_told_too(kind, capsys, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    others = []

    def app_of(optimized):
        others.append(socket.create_server(("127.0.0.1", port)))

    monkeypatch.setattr("optimas_jax.saved.serve.app_of", app_of)
    assert command("serve", f"--system={kind}", f"--port={port}") == 1
    others[0].close()
    told = capsys.readouterr()
    assert f"cannot listen on 127.0.0.1:{port}" in told.err and not told.out


def test_an_interrupt_is_how_a_server_ends(kind, capsys, monkeypatch):
    def run(server, sockets):
        raise KeyboardInterrupt

    monkeypatch.setattr(uvicorn.Server, "run", run)
    assert command("serve", f"--system={kind}", "--port=0") == 130
    told = capsys.readouterr()
    assert "words of" in told.out and "stopped" not in told.err


def test_flags_of_a_program_are_not_taken_for_those_of_a_model():
    with pytest.raises(absl.app.UsageError, match="--best_of and --reward_url are of a program: give --system"):
        command("serve", "--reward=runs/x", "--best_of=4")


async def score(component, inputs, outputs, reward):
    if component == "broken":
        raise StopRun("cannot read /home/of/the/server")
    return [float(len(one["say"])) for one in outputs]


@pytest.mark.parametrize(
    ("component", "outputs", "status", "message"),
    [
        ("say", [{"say": "a"}, ["a"]], 400, "outputs[1] must be an object"),
        ("say", {}, 400, "outputs a list"),
        ("say", [{}], 500, "failed on this request (KeyError)"),
        ("broken", [{"say": "a"}], 500, "failed on this request (StopRun): its log has the reason"),
    ],
)
def test_scores_that_cannot_be_given_say_why_in_json(component, outputs, status, message):
    with serving_app(make_reward_app(score), log_level="critical") as url:
        assert post(f"{url}/score", {"component": "say", "inputs": {}, "outputs": [{"say": "ab"}]})[1]["scores"] == [2]
        code, answer = post(f"{url}/score", {"component": component, "inputs": {}, "outputs": outputs})
    assert code == status and message in answer["error"]["message"] and "/home" not in str(answer)


@pytest.mark.parametrize(
    "answer",
    [b"{}", b"[1, 2]", b'{"scores": [1.0]}', b'{"scores": [1.0, null]}', b'{"scores": [1.0, NaN]}', b"prose", None],
)
def test_what_is_no_server_of_local_rewards_is_said(answer):
    async def other(request):
        if answer is not None:
            return Response(answer)
        return Response(b"cut", headers={"content-length": "99"})

    with serving_app(Starlette(routes=[Route("/score", other, methods=["POST"])]), log_level="critical") as url:
        scores = remote_scorer(url).scores("say", "e", {}, [{"say": "a"}, {"say": "b"}], "r")
        with pytest.raises(StopRun, match=f"{url}/score.*launch/serve.py --reward=... serves them"):
            asyncio.run(scores)


@pytest.mark.parametrize(
    "address", ["host:1", "http://", "http://host:abc", "http://a host", "ftp://host", "http://[::1"]
)
def test_what_is_no_address_of_a_server_is_refused(address):
    with pytest.raises(ValueError, match="expected the address of a server"):
        remote_scorer(address)


def test_a_program_that_fails_the_server_is_an_error_in_json(kind):
    async def run(fields):
        raise RuntimeError("secret")

    app = make_system_app(run, lambda trace: None, name="words", required=("question",))
    with serving_app(app, log_level="critical") as url:
        status, answer = post(f"{url}/run", {"question": "1"})
    assert (status, answer["error"]["type"]) == (500, "server_error") and "secret" not in str(answer)


@pytest.mark.parametrize("name", ["", ".", "..", "../other", "/etc", "a/b", "a\0b"])
def test_names_of_checkpoints_are_no_paths(tmp_path, name):
    store = CheckpointStore(tmp_path / "checkpoints")
    for call in (lambda: store.metadata(name), lambda: store.save(name, {}, {}), lambda: store.load(name, {})):
        with pytest.raises(StopRun, match="no checkpoint can be called") as raised:
            call()
        assert str(tmp_path) not in str(raised.value)


# Checks


def checked(new, old, tmp_path, rows=ROWS, **gate):
    return check_bests(read_folder(new), read_folder(old), rows, Gate(**gate), Bench(tmp_path / "check", QUIET))


def test_a_worse_best_fails_and_the_page_says_where(kind, rude, tmp_path, model):
    found = checked(rude, kind, tmp_path)
    assert not found.decision.passed and found.decision.gain.mean == pytest.approx(-10 / 24)
    page = check_page(found)
    assert "**Fails**: it is worse, by 0.417" in page and f"# {tmp_path}/rude against {tmp_path}/kind" in page
    assert "-Kindly say it.\n+Rudely say it.\n Please." in page
    assert "- `config.optimize.iterations: 4 -> 8`" in page and "10 are worse now, 0 better." in page
    assert '| q5 | {"question": "5?"} | {"answer": "5"} | {"answer": "wrong"} | 1.000 -> 0.000 |' in page
    assert page.count(" -> 0.000 |") == MOST_EXAMPLES
    paid = len(model.requests)
    assert checked(kind, rude, tmp_path).decision.passed and len(model.requests) == paid  # from the tape
    assert found.new.cost.calls == found.old.cost.calls == 24


def test_equal_bests_pass_unless_a_gain_is_asked_for(kind, tmp_path):
    assert checked(kind, kind, tmp_path).decision.passed
    assert "The configurations are alike." in check_page(checked(kind, kind, tmp_path))
    wanted = checked(kind, kind, tmp_path, min_gain=0.05)
    assert wanted.decision.reasons == ("a gain of +0.05 is not shown, it is +0.000",)
    cost = checked(kind, kind, tmp_path, max_cost=0.5).decision
    assert cost.reasons == ("it costs 1.00 times as much, and 0.5 is allowed",)


@pytest.mark.filterwarnings("default")  # of a command they are lines
def test_a_page_says_that_a_program_was_edited_since_its_run(kind, rude, tmp_path, capsys):
    assert "Edited since" not in check_page(checked(kind, rude, tmp_path))
    (rude / "identity.json").write_text(json.dumps({"declared": {"component 'say'": "as it was"}, "code": {}}))
    page = check_page(checked(kind, rude, tmp_path))
    assert f"Edited since the run; here the program ran as it is now:\n\n- {tmp_path}/rude: component 'say'" in page
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:2]))
    given = [f"--run={rude}", f"--input={tmp_path / 'rows.jsonl'}", f"--output={tmp_path / 'out.jsonl'}"]
    assert command("predict", *given) == 0
    assert (
        capsys.readouterr().err
        == f"warning: {tmp_path}/rude was found before component 'say', the program 'words' changed\n"
    )


def test_a_best_is_moved_to_another_model(rude, tmp_path):
    moved = move(read_folder(rude), ROWS, Gate(), Bench(tmp_path / "check", QUIET), "weak")
    means = {name: (default.mean[0], best.mean[0]) for name, default, best in moved.rows}
    assert means == {"scripted": (1.0, pytest.approx(14 / 24)), "weak": (0.5, pytest.approx(7 / 24))}
    page = move_page(moved)
    assert "| weak | 0.500 [" in page and "On weak: **Fails**: it is worse, by 0.208" in page


def test_what_cannot_be_compared_is_refused_before_anything_is_paid(kind, module, tmp_path, model):
    scored = best(tmp_path / "scored", module, "Say it.", metric=module.other)
    with pytest.raises(ValueError, match=r"scored is scored by 'other', .*kind by 'right': one metric is needed"):
        checked(scored, kind, tmp_path)
    closed = best(tmp_path / "closed", module, "Say it.", metric=lambda example, made: 0.0)
    with pytest.raises(ValueError, match=r"the metric of .*closed cannot be imported, as .*lambda"):
        checked(closed, kind, tmp_path)
    with pytest.raises(ValueError, match="words brings no examples of its own: name rows with --data"):
        checked(kind, kind, tmp_path, rows=None)
    with pytest.raises(ValueError, match="words reads question, and question is missing"):
        checked(kind, kind, tmp_path, rows=[{"wanted": "1"}])
    assert not model.requests


# The commands


DEFINES = [name for name in dir(flags) if name.startswith("DEFINE_") and name != "DEFINE_flag"]


def command(name, *arguments):
    """Runs a file of ``launch/`` in this process, with flags of its own."""
    values = flags.FlagValues()
    with pytest.MonkeyPatch.context() as patched:
        for define in DEFINES:
            patched.setattr(flags, define, functools.partial(getattr(flags, define), flag_values=values))
        patched.setattr(flags, "FLAGS", values)
        main = runpy.run_path(str(ROOT / "launch" / f"{name}.py"))["main"]
        return main(values([f"{name}.py", *arguments]))


def test_the_commands_exit_as_their_results_are(kind, rude, tmp_path, capsys):
    rows, page = tmp_path / "rows.jsonl", tmp_path / "check.md"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    common = [f"--data={rows}", f"--workdir={tmp_path / 'check'}"]
    assert command("check", str(rude), f"--against={kind}", f"--output={page}", *common) == 1
    assert capsys.readouterr().out == page.read_text() and "**Fails**" in page.read_text()
    assert command("check", str(kind), f"--against={rude}", "--min-gain=0.1", "--max-cost=1.5", *common) == 0
    assert command("check", str(kind), "--model=weak", *common) == 0
    assert "| weak | " in capsys.readouterr().out
    assert command("check", str(tmp_path / "nowhere"), f"--against={rude}", *common) == 1
    assert f"there is no folder {tmp_path / 'nowhere'}" in capsys.readouterr().err

    out = tmp_path / "out.jsonl"
    assert command("predict", f"--run={kind}", f"--input={rows}", f"--output={out}") == 0
    assert len(out.read_text().splitlines()) == len(ROWS)
    rows.write_text(json.dumps({"question": "refused"}))
    assert command("predict", f"--run={kind}", f"--input={rows}", f"--output={out}") == 1
    assert "1 rows in" in capsys.readouterr().out
    assert command("serve", f"--system={tmp_path / 'nowhere'}") == 1
    assert f"there is no folder {tmp_path / 'nowhere'}" in capsys.readouterr().err
