"""The server of a peer: what it shows, what it counts, and the result of a peer's search."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib.util
import json
import random
import sys
import time
from pathlib import Path

import pytest
from as_program import as_program
from fakes import ScriptedCompleter
from runs import ROOT
from scripted import answer, scripted_config

from optimas_jax.compare.account import Account, BudgetUsed
from optimas_jax.compare.cell import CLOCK, run_cell
from optimas_jax.compare.optimizers import Ours, Peer
from optimas_jax.compare.peer import PeerError
from optimas_jax.compare.peer_server import PeerServer, serve
from optimas_jax.compare.stopwatch import Meter, Seconds
from optimas_jax.core.running.execution import gather
from optimas_jax.core.system import System
from optimas_jax.core.types import Example
from optimas_jax.core.values import Configuration, Prompt, value_from_json
from optimas_jax.llm.base import CompletionRequest, Message
from optimas_jax.llm.component import LanguageModel, llm_component
from optimas_jax.llm.render import render_text
from optimas_jax.loop.journal import load_best
from optimas_jax.report.console import ConsoleProgress

PEERS = ROOT / "third_party" / "peers"


def peer_module(name):
    spec = importlib.util.spec_from_file_location(f"peer_{name}", PEERS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


client = peer_module("peer_client")
MODEL = LanguageModel("m", style="text", max_tokens=8)


def upper():
    """One component: writes its question in capitals, if its instruction says so."""
    part = llm_component(
        name="shout",
        description="Shout.",
        inputs=("question",),
        output="answer",
        instruction="Say it.",
        language_model=MODEL,
    )
    return System((part,), ("question",), ("answer",), lambda outputs, gold: float(outputs["answer"] == gold["answer"]))


def shout(request):
    *_, block = request.messages[0].content.split("\n\n")
    word = block.splitlines()[0].removeprefix("Question: ")
    return word.upper() if "loud" in request.messages[0].content else word


def splits():
    return {
        split: tuple(
            Example(f"{split}{i}", {"question": f"{split} {i}"}, {"answer": f"{split} {i}".upper()}, split)
            for i in range(2)
        )
        for split in ("train", "val", "test")
    }


class Bench:
    """A server on a scripted model."""

    def __init__(self, budget=10**9, form=lambda system: system):
        self.completer = ScriptedCompleter(shout)
        system = form(upper())
        self.account = Account(self.completer, budget, system.default_configuration(), ["val0", "val1"])
        self.system = system.using(self.account)
        self.server = PeerServer(system, self.account, MODEL, splits(), seed=3)


def value(instruction, demos=()):
    component = {"inputs": ["question"], "outputs": ["answer"], "max_demos": 2, "max_instruction_chars": 20}
    return client.as_value(component, instruction, demos)


def test_a_peer_sees_training_and_validation_alone():
    task = Bench().server.task()
    assert [row["id"] for split in task["splits"].values() for row in split] == ["train0", "train1", "val0", "val1"]
    assert "test" not in json.dumps(task)
    [part] = client.tuned(task)
    assert (part["name"], part["instruction"], part["max_demos"]) == ("shout", "Say it.", 4)


def test_prompts_of_a_peer_become_ours_whole_and_within_the_space():
    demos = [
        {"answer": "lacks a question"},
        {"question": "a", "answer": "A", "augmented": True},
        {"question": "lacks an answer"},
        {"question": ["b", 1], "answer": 2},
        {"question": "c", "answer": "C"},
    ]
    prompt = value_from_json(value("x" * 30, demos))
    assert isinstance(prompt, Prompt) and prompt.instruction == "x" * 20
    assert [dict(demo.inputs) for demo in prompt.demos] == [{"question": "a"}, {"question": ("b", 1)}]
    assert [dict(demo.outputs) for demo in prompt.demos] == [{"answer": "A"}, {"answer": 2}]
    upper().check(Configuration({"shout": prompt}))


def test_a_demonstration_that_lacks_an_input_follows_complete_ones_and_says_what_it_lacks():
    part = {"inputs": ["question", "hint"], "outputs": ["answer"], "max_demos": 3, "max_instruction_chars": 20}
    demos = [{"question": "a", "answer": "A"}, {"answer": "B"}, {"question": "c", "hint": "h", "answer": "C"}]
    prompt = client.as_value(part, "Say.", demos)
    assert [demo["inputs"] for demo in prompt["demos"]] == [
        {"question": "c", "hint": "h"},
        {"question": "a", "hint": "Not supplied for this particular example."},
    ]


def test_a_run_with_a_temperature_of_its_own_measures_no_configuration():
    bench = Bench()
    with serve(bench.server) as address:
        peer = client.Client(address)
        for example in ("val0", "val1"):
            peer.score({"shout": value("Hot.")}, example, {"answer": "no"}, temperature=1.0, attempt=1)
        assert bench.account.curve == [] and bench.account.cost.system_runs == 2
        for example in ("val0", "val1"):
            peer.score({"shout": value("Hot.")}, example, {"answer": example.replace("val", "VAL ")})
    assert [point["val_score"] for point in bench.account.curve] == [1.0]


def test_a_peer_that_chooses_for_each_input_sees_inputs_alone_and_runs_nothing_on_them():
    bench = Bench()
    with serve(bench.server) as address:
        peer = client.Client(address)
        unseen = peer.unseen()
        assert unseen == [{"id": f"test{i}", "inputs": {"question": f"test {i}"}} for i in range(2)]
        peer.choose({"shout": value("Be loud.")}, "test1")
        with pytest.raises(client.Refused, match="KeyError: 'val0'"):
            peer.choose({"shout": value("Be loud.")}, "val0")
        with pytest.raises(client.Refused, match="KeyError: 'test0'"):
            peer.component("shout", {"question": "test 0"}, None, "test0")
    assert [*bench.server.chosen] == ["test1"] and not bench.completer.requests


def test_a_component_call_of_a_peer_is_the_request_that_our_own_run_makes():
    bench = Bench()
    prompt = value("Be loud.", [{"question": "hi", "answer": "HI"}])
    with serve(bench.server) as address:
        outputs = client.Client(address).component("shout", {"question": "val 0"}, prompt, "val0")
    assert outputs == {"answer": "VAL 0"}
    configuration = Configuration({"shout": value_from_json(prompt)})
    gather([lambda: bench.system.run(configuration, splits()["val"][0], 3)], concurrency=1)
    theirs, ours = bench.completer.requests
    assert theirs == ours
    [(_, text)] = render_text(value_from_json(prompt), {"question": "val 0"}, ["question"], "answer")
    assert theirs.messages[0].content == text


def test_a_program_is_run_whole_as_in_our_own_run_and_tells_its_calls():
    bench = Bench(form=as_program)
    prompt = value("Be loud.", [{"question": "hi", "answer": "HI"}])
    with serve(bench.server) as address:
        peer = client.Client(address)
        assert peer.task()["program"] and not Bench().server.task()["program"]
        run = peer.run({"shout": prompt}, "val0")
        hot = peer.run({"shout": prompt}, "val1", temperature=0.7, attempt=2)
        assert hot["score"] == 1.0 and bench.account.curve == []  # a hot run measures no configuration
        peer.run({"shout": prompt}, "val1")
    assert run == {
        "outputs": {"answer": "VAL 0"},
        "score": 1.0,
        "feedback": "",
        "calls": [{"name": "shout", "inputs": {"question": "val 0"}, "outputs": {"answer": "VAL 0"}}],
    }
    assert bench.account.curve[-1]["val_score"] == 1.0
    configuration = Configuration({"shout": value_from_json(prompt)})
    gather([lambda: bench.system.run(configuration, splits()["val"][0], 3)], concurrency=1)
    theirs, attempt, _, ours = bench.completer.requests
    assert theirs == ours and attempt.temperature == 0.7 and attempt.seed != ours.seed


def test_a_repeated_call_counts_once_and_a_question_asked_again_is_sampled_anew():
    bench = Bench()
    with serve(bench.server) as address:
        peer = client.Client(address)
        for _ in range(3):
            peer.component("shout", {"question": "val 0"}, value("Say."), "val0")
        once = bench.account.cost
        for _ in range(2):
            peer.complete([{"role": "user", "content": "Question: q"}], max_tokens=4, temperature=1.0)
    assert once.calls == 1 and once.tokens > 0
    assert bench.account.cost.calls == 3
    assert len({request.seed for request in bench.completer.requests[-2:]}) == 2


def test_a_candidate_counts_when_it_has_every_validation_example_and_the_first_of_equals_stays():
    bench = Bench()
    with serve(bench.server) as address:
        peer = client.Client(address)
        run = [("Be loud.", "val0", 1.0), ("Quiet.", "val0", 0.0), ("Quiet.", "val1", 0.0), ("Be loud.", "train0", 0.0)]
        run += [("Be loud.", "val1", 1.0), ("Louder.", "val0", 1.0), ("Louder.", "val1", 1.0)]
        for instruction, example, score in run:
            answered = splits()[example[:-1]][int(example[-1])].gold["answer"] if score else "no"
            assert peer.score({"shout": value(instruction)}, example, {"answer": answered}) == score
        assert peer.score({"shout": value("None.")}, "val0", {}) == 0.0
    assert [(point["val_score"], point["system_runs"]) for point in bench.account.curve] == [
        (0.0, 3),
        (1.0, 5),
        (1.0, 7),
    ]
    best, note = bench.account.result()
    assert note == "" and best["shout"].instruction == "Be loud."
    assert bench.account.curve[-1]["at"] == "end" and bench.account.curve[-1]["system_runs"] == 8


def test_without_a_whole_candidate_the_default_is_tested_and_said():
    configuration, note = Bench().account.result()
    assert configuration == upper().default_configuration() and "the default configuration" in note


def test_a_request_that_could_exceed_the_budget_is_refused_before_it_starts(monkeypatch):
    class Asleep(Exception):
        pass

    def sleep(_):
        raise Asleep

    monkeypatch.setattr(client.time, "sleep", sleep)
    bench = Bench(budget=200)
    with serve(bench.server) as address:
        peer = client.Client(address)
        peer.component("shout", {"question": "val 0"}, value("Say."), "val0")
        assert peer.score({"shout": value("Say.")}, "val0", {"answer": "x"}) == 0.0
        peer.component("shout", {"question": "val 0"}, value("Say."), "val0")  # costs nothing new
        with pytest.raises(Asleep):  # it waits for its end
            peer.component("shout", {"question": "x" * 200}, value("Say."), "val1")
    assert bench.server.spent.is_set() and len(bench.completer.requests) == 2
    assert 0 < bench.account.cost.tokens <= 200


def test_requests_in_flight_are_reserved_and_others_wait_for_them():
    """Eight at once, each at most 100 tokens and in truth few, in a budget for three: all are answered, the budget
    holds, and one that can never fit is refused."""
    in_flight, most = [0], [0]

    class Slow(ScriptedCompleter):
        async def complete(self, request):
            in_flight[0] += 1
            most[0] = max(most[0], in_flight[0])
            await asyncio.sleep(0.01)
            in_flight[0] -= 1
            return await super().complete(request)

    def request(number, size=1):
        return CompletionRequest("m", (Message("user", f"{number}" * size),), max_tokens=35)

    async def run():
        await asyncio.gather(*(account.complete(request(number)) for number in range(8)))
        await account.complete(request(9, size=400))

    account = Account(Slow(lambda request: "word"), 399, Configuration({}), [])
    with pytest.raises(BudgetUsed, match="of 399 tokens are used, a request needs 499"):
        asyncio.run(run())
    assert account.cost.calls == 8 and account.cost.tokens <= 399 and most[0] == 3


def test_a_request_reserves_the_tokens_of_its_prompt_where_they_are_known():
    """A prompt of 60 bytes and 9 tokens with an answer of at most 35, in a budget of 44."""

    class Counting(ScriptedCompleter):
        def prompt_tokens(self, request):
            return 9

    request = CompletionRequest("m", (Message("user", "x" * 60),), max_tokens=35)
    account = Account(Counting(lambda request: "word"), 44, Configuration({}), [])
    assert asyncio.run(account.complete(request)).text == "word"
    with pytest.raises(BudgetUsed, match="a request needs 44"):
        asyncio.run(Account(Counting(lambda request: "word"), 43, Configuration({}), []).complete(request))


@pytest.mark.parametrize("seed", range(5))
def test_a_random_budget_is_never_exceeded(seed):
    rng = random.Random(seed)
    budget = rng.randint(200, 3000)
    account = Account(ScriptedCompleter(lambda request: "word " * 3), budget, Configuration({}), [])

    async def search(worker):
        for number in range(100):
            text = f"{worker} {number} " + "x " * rng.randint(0, 100)
            await account.complete(CompletionRequest("m", (Message("user", text),), max_tokens=rng.randint(1, 30)))

    async def run():
        with contextlib.suppress(BudgetUsed):
            await asyncio.gather(*map(search, range(4)))

    asyncio.run(run())
    assert 0 < account.cost.tokens <= budget


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/nowhere", {}, "no /nowhere here"),
        ("/component", {"name": "nobody", "inputs": {}, "example": "val0"}, "KeyError: 'nobody'"),
        ("/component", {"name": "shout", "inputs": {"question": "q"}, "example": "test0"}, "KeyError: 'test0'"),
        ("/score", {"values": {"shout": {"type": "pickle"}}, "example": "val0", "outputs": {}}, "unknown value type"),
        (
            "/score",
            {"values": {"other": {"type": "choice", "name": "x"}}, "example": "val0", "outputs": {}},
            "no component 'other'",
        ),
    ],
)
def test_a_request_that_cannot_be_answered_is_refused_and_others_are_answered(path, body, message):
    with serve(Bench().server) as address, pytest.raises(client.Refused, match=message):
        client.Client(address).request(path, body)


PEER = """
import sys
sys.path.insert(0, {peers!r})
from peer_client import Client, as_value, tuned
client = Client(sys.argv[1])
task = client.task()
values = {{part["name"]: as_value(part, part["instruction"]) for part in tuned(task)}}
def run(values, example):
    fields = dict(example["inputs"])
    for part in task["components"]:
        given = {{name: fields[name] for name in part["inputs"]}}
        fields |= client.component(part["name"], given, values.get(part["name"]), example["id"]) or {{}}
    return fields
shown = [run(values, example) for example in task["splits"]["train"][:2]]
part = tuned(task)[-1]
demos = [{{**fields, "answer": example["gold"]["answer"]}} for fields, example in zip(shown, task["splits"]["train"])]
for candidate in (values, {{**values, part["name"]: as_value(part, part["instruction"], demos)}}):
    for example in task["splits"]["val"]:
        client.score(candidate, example["id"], {{"answer": run(candidate, example)["answer"]}})
{end}
"""


def a_peer(tmp_path: Path, end: str) -> Peer:
    script = tmp_path / "peer.py"
    script.write_text(PEER.format(peers=str(PEERS), end=end))
    return Peer((sys.executable, str(script)))


def test_what_a_peer_finds_is_tested_by_our_own_evaluation_and_a_done_peer_is_not_run_again(tmp_path):
    peer = a_peer(tmp_path, "")
    config = peer.config(scripted_config(), 0, 10**6)
    completer = ScriptedCompleter(answer)
    cell = run_cell(peer, config, tmp_path / "cell", ConsoleProgress(quiet=True), completer)
    assert cell["note"] == "" and cell["n"] == len(cell["scores"]) == len(cell["baseline"])
    assert sum(cell["scores"]) > sum(cell["baseline"])  # shown how, the scripted model answers shortly
    assert cell["curve"][0]["val_score"] < cell["curve"][-1]["val_score"]
    assert cell["curve"][-1]["tokens"] > 0
    best = load_best(tmp_path / "cell" / "run" / "best")
    assert len(best["answer_generator"].demos) == 2
    count = len(completer.requests)
    again = run_cell(Peer(("/nowhere",)), config, tmp_path / "cell", ConsoleProgress(quiet=True), completer)
    assert {**again, "seconds": 0} == {**cell, "seconds": 0} and len(completer.requests) == count


def test_what_a_peer_chooses_for_each_input_is_tested_there(tmp_path):
    end = """for row in client.unseen()[::2]:
    client.choose({**values, part["name"]: as_value(part, part["instruction"], demos)}, row["id"])
"""
    peer = a_peer(tmp_path, end)
    config = peer.config(scripted_config(), 0, 10**6)
    cell = run_cell(peer, config, tmp_path / "cell", ConsoleProgress(quiet=True), ScriptedCompleter(answer))
    changed = [after != before for before, after in zip(cell["baseline"], cell["scores"], strict=True)]
    best = load_best(tmp_path / "cell" / "run" / "best")
    assert len(best["answer_generator"].demos) == 2  # which the other half of the inputs has
    assert any(changed) and cell["tested"]["val_score"] is None and not cell["unchanged"]


def test_at_the_budget_a_peer_is_ended_and_its_best_so_far_is_tested(tmp_path):
    more = """import itertools
for number in itertools.count():
    client.complete([{'role': 'user', 'content': f'{number} ' + 'x' * 50_000}], max_tokens=4, temperature=0.0)
"""
    peer = a_peer(tmp_path, more)
    completer = ScriptedCompleter(lambda request: answer(request) if request.role != "peer" else "word")
    budget = 10**6
    cell = run_cell(
        peer, peer.config(scripted_config(), 0, budget), tmp_path / "cell", ConsoleProgress(quiet=True), completer
    )
    assert 0.8 * budget < cell["curve"][-1]["tokens"] <= budget
    assert cell["tested"]["val_score"] == max(point["val_score"] for point in cell["curve"])
    assert cell["tested"]["tokens"] <= budget and cell["tested"]["later"] == 0


def test_a_peer_that_fails_says_why(tmp_path):
    peer = a_peer(tmp_path, "raise SystemExit('no more ideas')")
    config = peer.config(scripted_config(), 0, 10**6)
    with pytest.raises(PeerError, match="no more ideas"):
        run_cell(peer, config, tmp_path / "cell", ConsoleProgress(quiet=True), ScriptedCompleter(answer))


def test_the_seconds_of_a_search_are_those_of_all_its_attempts(tmp_path):
    peer, cell = a_peer(tmp_path, ""), tmp_path / "cell"
    config = peer.config(scripted_config(), 0, 10**6)
    (tmp_path / "failing").mkdir()
    failing = a_peer(tmp_path / "failing", "raise SystemExit('interrupted')")
    with pytest.raises(PeerError):
        run_cell(failing, config, cell, ConsoleProgress(quiet=True), ScriptedCompleter(answer))
    seconds = json.loads((cell / CLOCK).read_text())
    assert seconds["search"] > 0 and seconds["rewards"] == 0
    (cell / CLOCK).write_text(json.dumps(dataclasses.asdict(Seconds(1000.0, 500.0))))
    result = run_cell(peer, config, cell, ConsoleProgress(quiet=True), ScriptedCompleter(answer))
    assert result["seconds"] > 1000 and result["reward_seconds"] == 500


def test_a_peer_sees_no_key(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "planted")
    peer = a_peer(tmp_path, "import os\nassert 'planted' not in os.environ.values()")
    config = peer.config(scripted_config(), 0, 10**6)
    cell = run_cell(peer, config, tmp_path / "cell", ConsoleProgress(quiet=True), ScriptedCompleter(answer))
    assert cell["curve"]


def test_ours_searches_until_the_budget_is_used(tmp_path):
    optimizer = Ours({"optimize.proposers": "random", "optimize.score": "global"})
    config = scripted_config()
    config = dataclasses.replace(config, optimize=dataclasses.replace(config.optimize, demo_sets=8))  # never all drawn
    config = optimizer.config(config, 1, 100_000)
    assert config.seed == 1
    cell = run_cell(optimizer, config, tmp_path / "cell", ConsoleProgress(quiet=True), ScriptedCompleter(answer))
    lines = (tmp_path / "cell" / "run" / "journal.jsonl").read_text().splitlines()
    [end] = [event for event in map(json.loads, lines) if event["event"] == "out_of_budget"]  # a step was cut
    assert 90_000 < end["tokens"] <= 100_000 and cell["curve"][0]["at"] == "start"
    assert cell["curve"][-1]["tokens"] <= 100_000
    assert len(cell["scores"]) == cell["n"]
    assert cell["tested"]["val_start"] == cell["curve"][0]["val_score"]
    assert cell["tested"]["tokens"] <= 100_000


def test_a_meter_counts_the_seconds_of_methods_and_a_call_inside_another_once():
    class Slow:
        def outer(self):
            time.sleep(0.02)
            return self.inner()

        def inner(self):
            time.sleep(0.02)
            return "result"

    slow, meter = Slow(), Meter()
    with meter.watching(slow, "outer", "inner"):
        assert slow.outer() == "result"
        once = meter.seconds
    slow.outer()
    assert meter.seconds == once >= 0.04
