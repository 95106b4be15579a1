"""What a run found, in use: a small run of a program in a file, loaded in a process of its own and here."""

import asyncio
import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys

import jax
import pytest
import tiny
from fakes import ScriptedCompleter
from runs import ROOT
from served import serving_app

import optimas_jax as oj
from optimas_jax.benchmarks.modules import SystemConfig
from optimas_jax.checkpoints.peft import write_adapter
from optimas_jax.checkpoints.weights import RANDOM_CONFIG
from optimas_jax.core.component import ComponentFailure
from optimas_jax.core.running.execution import Job
from optimas_jax.core.schema import from_dict
from optimas_jax.core.types import Example, StopRun, freeze, thaw
from optimas_jax.core.values import Adapter, Configuration, PerInstance, Prompt
from optimas_jax.loop.config import RunConfig
from optimas_jax.loop.journal import FolderError, RunFolder, load_best, reward_name
from optimas_jax.loop.stages import open_run
from optimas_jax.models.backbone import init_lora
from optimas_jax.models.config import LoraConfig
from optimas_jax.report.console import ConsoleProgress
from optimas_jax.rewards.data import load_groups
from optimas_jax.rewards.scorer import score_outputs
from optimas_jax.saved.serve import reward_app_of
from optimas_jax.saved.source import record_source

QUIET = ConsoleProgress(quiet=True)
OTHER_REWARD = PerInstance((Prompt("Say it."),), "unknown", 4)
MODULE = """
import optimas_jax as oj

hint = oj.prompt("Give a hint.", max_tokens=5)
say = oj.prompt("Say the word.", max_tokens=5)


async def words(question, hurry="no"):
    told = await hint(question=question)
    return {"answer": await say(question=question, hint=told)}


def letters(example, made):
    return sum(one in "aeiou" for one in made["answer"]) / 10
"""
# Calls and scores of a process that knows nothing but the folder.
FRESH = """
import asyncio, json, pathlib, sys, urllib.request

import optimas_jax as oj

folder, tests, inputs, texts = json.loads(sys.argv[1])
sys.path.append(tests)
best = oj.load(folder)
found = {"sync": best(question="word 1?"), "calls": len(best.trace(question="word 1?").calls)}


async def notebook():
    return await best(question="word 1?")


found["async"] = asyncio.run(notebook())
found["best_of"] = oj.load(folder, best_of=4)(question="word 1?")
found["scores"] = oj.load_reward(folder)["say"].score(inputs, texts)

from served import serving_app
from optimas_jax.saved.serve import app_of

with serving_app(app_of(best)) as address:
    body = json.dumps({"question": "word 1?"}).encode()
    found["served"] = json.load(urllib.request.urlopen(urllib.request.Request(f"{address}/run", body)))

from optimas_jax.benchmarks.tables import read_table
from optimas_jax.report.console import ConsoleProgress
from optimas_jax.saved.predict import predict

rows = read_table(pathlib.Path(folder) / "rows.jsonl")
out = pathlib.Path(folder) / "out.jsonl"
found["predicted"] = [one["outputs"] for one in predict(best, rows, out, ConsoleProgress(quiet=True))]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    """The user's module, as an import of its name would load it."""
    file = tmp_path_factory.mktemp("code") / "words_of_a_user.py"
    file.write_text(MODULE)
    spec = importlib.util.spec_from_file_location("words_of_a_user", file)
    loaded = importlib.util.module_from_spec(spec)
    sys.modules["words_of_a_user"] = loaded
    spec.loader.exec_module(loaded)
    yield loaded
    del sys.modules["words_of_a_user"]


@pytest.fixture(scope="module")
def folder(module, tmp_path_factory):
    """A run that collected, trained local rewards and, so to say, found other prompts."""
    folder = tmp_path_factory.mktemp("runs") / "words"
    rows = [{"id": f"q{i}", "question": f"word {i}?", "wanted": str(i)} for i in range(36)]
    oj.optimize(
        module.words,
        module.letters,
        rows,
        model=oj.LanguageModel("random:0", style="text", temperature=0.8, max_tokens=5),
        workdir=folder,
        config={"reward.model": "random:0", "optimize.iterations": 0, "offline.groups": 2, "offline.calls": 24},
        progress=QUIET,
    )
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:4]))
    instruct(folder, "Say it.\nLoudly.")
    return folder


def instruct(folder, instruction):
    """Writes another instruction of ``say`` into a best."""
    file = folder / "best" / "configuration.json"
    saved = json.loads(file.read_text())
    saved["configuration"]["say"]["instruction"] = instruction
    file.write_text(json.dumps(saved))


@pytest.fixture(scope="module")
def run(folder, module):
    """The run, opened by its own configuration."""
    plain = json.loads((folder / "config.json").read_text())
    config = from_dict(RunConfig, plain)
    config = dataclasses.replace(config, system=from_dict(SystemConfig, plain["system"]))
    rows = [{"id": f"q{i}", "question": f"word {i}?", "wanted": str(i)} for i in range(36)]
    with open_run(config, folder, QUIET, benchmark=oj.benchmark(module.words, module.letters, rows)) as opened:
        yield opened


def outputs_of(run, configuration, *examples):
    return [thaw(t.outputs) for t in run.host.run("", [Job(configuration, e, run.config.seed) for e in examples])]


@pytest.mark.long
def test_a_fresh_process_says_what_the_run_says(run, folder):
    group = next(one for one in load_groups(folder / "groups" / "offline") if one.component == "say")
    texts = [one.outputs["say"] for one in group.candidates]
    arguments = json.dumps([str(folder), str(ROOT / "tests"), thaw(group.inputs), texts])
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", FRESH, arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=folder)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)

    configuration = load_best(folder / "best")
    asked = Example("", freeze({"question": "word 1?"}), freeze({"wanted": "1"}), "")
    [expected] = outputs_of(run, configuration, asked)
    assert found["sync"] == found["async"] == found["served"] == expected and found["calls"] == 2

    reward = reward_name(folder, configuration)
    chosen = PerInstance((configuration["say"],), reward, 4, temperature=run.config.collect.temperature)
    assert outputs_of(run, configuration.replace("say", chosen), asked) == [found["best_of"]]

    [scores] = score_outputs(
        run.device.rewards.scorer, run.host.system, reward, "say", [(group.inputs, [{"say": text} for text in texts])]
    )
    assert found["scores"] == pytest.approx(scores, abs=1e-5) and len(set(scores)) > 1

    named = {example.id: example for examples in run.host.splits.values() for example in examples}
    assert found["predicted"] == outputs_of(run, configuration, *(named[f"q{i}"] for i in range(4)))


def scripted(optimized, answer):
    model = ScriptedCompleter(answer)
    return dataclasses.replace(optimized, system=optimized.system.using(model)), model


def test_a_loaded_program_checks_its_inputs_and_tells_its_calls(folder):
    best, model = scripted(oj.load(folder / "best"), lambda request: f"{request.role}!")
    assert best["say"].instruction == "Say it.\nLoudly." and str(best.inputs) == "question, hurry (optional)"
    with pytest.raises(ValueError, match=r"words reads question, hurry \(optional\), and question is missing"):
        best(hurry="yes")
    with pytest.raises(ValueError, match="words does not read wanted"):
        best(question="a", wanted="b")
    for call in (best, best.trace):
        with pytest.raises(ValueError, match=r"words reads question, .*: give inputs by their names, question=\.\.\."):
            call("a")
    assert not model.requests
    trace = best.trace(question="a")
    assert [(call.component, dict(call.outputs)) for call in trace.calls] == [
        ("hint", {"hint": "hint!"}),
        ("say", {"say": "say!"}),
    ]

    async def notebook():
        return await best(question="a"), await best.trace(question="a")

    assert asyncio.run(notebook()) == ({"answer": "say!"}, trace)


def test_a_failure_is_raised(folder):
    best, _ = scripted(oj.load(folder), lambda request: "")
    with pytest.raises(ComponentFailure, match="parse_error: empty answer"):
        best(question="a")


def test_values_without_a_component_are_named_with_the_program(folder, module):
    @oj.program(components=[oj.prompt("Say the word.", name="speak"), module.hint])
    async def other(question):
        return await module.hint(question=question)

    with pytest.raises(ValueError, match=r"and other has nothing to tune called say; it has speak, hint"):
        oj.load(folder, other)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (None, r"does not say where its program is: pass the program: load\(folder, program\)"),
        (
            {"reason": "it was defined in a notebook or a prompt, not in a file"},
            r"was defined in a notebook .*pass",
        ),
        ({"file": "/nowhere.py", "relative": "nowhere.py", "module": "x", "name": "y"}, r"was in /nowhere.py, where"),
        ({"relative": "../nowhere.py", "module": "x", "name": "y"}, r"was in /.*/nowhere.py, where"),
        (
            {"relative": "best/own.py", "module": "x", "name": "y"},
            r"in the run folder, .*own.py, which is not imported",
        ),
    ],
)
def test_a_program_that_cannot_be_imported_has_to_be_passed(folder, module, tmp_path, where, message):
    copy = shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoints", "tape*"))
    (copy / "program.json").unlink()
    (copy / "best" / "own.py").write_text("raise SystemExit")
    if where is not None:
        (copy / "program.json").write_text(json.dumps({"program": where, "metric": where}))
    with pytest.raises(ValueError, match=message):
        oj.load(copy)
    assert oj.load(copy, module.words).configuration == oj.load(folder).configuration


def test_a_run_folder_finds_its_program_from_where_it_lies_itself(folder, module, tmp_path, monkeypatch):
    assert '"file"' not in (folder / "program.json").read_text()
    shutil.copy(module.__file__, tmp_path / "mine.py")
    copy = shutil.copytree(folder, tmp_path / "runs" / "copy", ignore=shutil.ignore_patterns("checkpoints", "tape*"))
    where = {"relative": "../../mine.py", "module": "__main__", "name": "words"}
    (copy / "program.json").write_text(json.dumps({"program": where, "metric": where}))
    here = tmp_path / "a" / "b" / "c"
    here.mkdir(parents=True)
    (tmp_path / "a" / "mine.py").write_text("raise SystemExit")  # ../../mine.py of the current folder
    monkeypatch.chdir(here)
    assert oj.load(copy).name == "words"
    (tmp_path / "mine.py").unlink()
    with pytest.raises(ValueError, match=r"was in .*/mine.py, where there is no file now"):
        oj.load(copy)


PLAIN = """
SAY = "Say the word."


async def say(question):
    return f"{SAY} {question}"


async def words(question, hurry="no"):
    return {"answer": await say(question)}


def letters(example, made):
    return 0.0
"""
DECLARING = """
import optimas_jax as oj
import plain_words

plain_words.say = oj.component(plain_words.say, SAY=oj.prompt(plain_words.SAY))
"""


def test_a_program_whose_components_another_file_declares_is_loaded_with_that_file(folder, tmp_path, monkeypatch):
    (tmp_path / "plain_words.py").write_text(PLAIN)
    (tmp_path / "declaring.py").write_text(DECLARING)
    copy = shutil.copytree(folder, tmp_path / "runs" / "copy", ignore=shutil.ignore_patterns("checkpoints", "tape*"))
    saved = json.loads((copy / "best" / "configuration.json").read_text())
    del saved["configuration"]["hint"]
    (copy / "best" / "configuration.json").write_text(json.dumps(saved))
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path, str(tmp_path)])
        plain_words, declaring = importlib.import_module("plain_words"), importlib.import_module("declaring")
        record_source(copy, plain_words.words, plain_words.letters)
        assert sys.modules.pop("declaring") is declaring and sys.modules.pop("plain_words") is plain_words
    where = json.loads((copy / "program.json").read_text())
    assert where["declarations"] == {
        "components": ["say"],
        "files": [{"relative": "../../declaring.py", "module": "declaring"}],
    }
    with monkeypatch.context() as patch, pytest.warns(UserWarning, match="was found before"):
        patch.setattr(sys, "path", [*sys.path])
        assert oj.load(copy)(question="word?") == {"answer": "Say it.\nLoudly. word?"}
        del sys.modules["plain_words"]
    (tmp_path / "declaring.py").unlink()
    with pytest.raises(ValueError, match=r"the module with declarations of .*/copy was in .*declaring.py, where"):
        oj.load(copy)


def test_two_checkouts_of_a_package_are_not_taken_for_each_other(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    for checkout in ("new", "old"):
        package = tmp_path / checkout / "words_in_checkouts"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "said.py").write_text(MODULE)
        run = tmp_path / checkout / "run"
        shutil.copytree(folder, run, ignore=shutil.ignore_patterns("checkpoints", "tape*"))
        where = {"relative": "../words_in_checkouts/said.py", "module": "words_in_checkouts.said", "name": "words"}
        (run / "program.json").write_text(json.dumps({"program": where, "metric": where}))
    try:
        assert oj.load(tmp_path / "new" / "run").name == "words"
        with pytest.raises(
            ValueError, match=r"is .*new/words.*said.py in this process, and .*old/words.*each in a proc"
        ):
            oj.load(tmp_path / "old" / "run")
    finally:
        for name in ("words_in_checkouts", "words_in_checkouts.said"):
            sys.modules.pop(name, None)


def test_best_of_needs_a_local_reward_of_the_component(folder, tmp_path):
    trained = set(oj.load_reward(folder))
    assert "say" in trained
    assert isinstance(oj.load(folder, best_of={"say": 3})["say"], PerInstance)
    for name in {"hint", "say"} - trained:
        with pytest.raises(ValueError, match=rf"best_of=3 of '{name}' needs its local reward: .*it has those of say"):
            oj.load(folder, best_of={name: 3})
    for wrong in ({"nobody": 3}, {"say": 1}, 1):
        with pytest.raises(ValueError, match=r"expected 2 or more samples of a component, one of (say|hint)"):
            oj.load(folder, best_of=wrong)
    copy = shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoints", "tape*"))
    config = json.loads((copy / "config.json").read_text())
    config["optimize"]["score"] = "global"
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"trained none, as config.optimize.score is 'global'"):
        oj.load(copy, best_of=4)
    with pytest.raises(ValueError, match=r"trained none, as config.optimize.score is 'global'"):
        oj.load_reward(copy)


def test_a_local_reward_names_fields_that_are_not_its_components(folder):
    with pytest.raises(ValueError, match=r"'say' reads question, hint; given are question"):
        oj.load_reward(folder)["say"].score({"question": "a"}, ["b"])


def test_a_local_reward_takes_values_and_names_what_it_cannot_score(folder):
    rewards, given = oj.load_reward(folder), {"question": "a", "hint": "b"}
    assert repr(rewards) == "LocalRewards(hint, say)" and "System" not in repr(rewards["say"])
    with pytest.raises(KeyError, match="no local reward of 'said'; there are those of hint, say"):
        rewards["said"]
    assert rewards["say"].score(given, [3, "b"]) == rewards["say"].score(given, ["3", {"say": "b"}])
    with pytest.raises(ValueError, match="'say' has the fields say; given are answer"):
        rewards["say"].score(given, [{"answer": "b"}])
    with pytest.raises(ValueError, match="expected a list of candidate outputs of 'say'; got one text"):
        rewards["say"].score(given, "b")
    say = rewards["say"]
    nodes = [dataclasses.replace(one, outputs=()) if one.name == "say" else one for one in say._system.components]
    unseen = dataclasses.replace(say, _system=dataclasses.replace(say._system, components=tuple(nodes)))
    assert len(unseen.score(given, [{"text": "b", "why": "c"}])) == len(unseen.score(given, ["b"])) == 1


def test_a_program_that_was_edited_since_its_run_is_warned_of(folder, module, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoints", "tape*"))
    known = json.loads((copy / "identity.json").read_text())
    known["declared"]["component 'say'"], known["code"]["the program 'words'"] = "as it was", "as it was"
    known["code"]["the metric 'letters'"] = "as it was"  # which a call does not need
    (copy / "identity.json").write_text(json.dumps(known))
    with pytest.warns(UserWarning, match=r"/copy was found before component 'say', the program 'words' changed$"):
        assert (
            repr(oj.load(copy, module.words)) == "Optimized(words reads question, hurry (optional); tuned: hint, say)"
        )


def test_a_run_that_did_not_end_knows_its_program(module, tmp_path):
    def no_metric(example, made):
        raise RuntimeError("not today")

    with pytest.raises(StopRun, match="not today"):
        oj.optimize(
            module.words,
            no_metric,
            [{"question": f"word {i}?"} for i in range(36)],
            model=oj.LanguageModel("random:0", style="text", max_tokens=2),
            workdir=tmp_path / "run",
            progress=QUIET,
        )
    where = json.loads((tmp_path / "run" / "program.json").read_text())
    assert where["program"]["name"] == "words" and "no variable of the module" in where["metric"]["reason"]


def test_a_saved_choice_among_samples_works_and_needs_no_run_folder(folder, tmp_path):
    configuration = load_best(folder / "best")
    reward = reward_name(folder, configuration)
    saved = configuration.replace("say", PerInstance((Prompt("Say it."),), reward, 3))
    best = tmp_path / "elsewhere" / "best"
    shutil.copytree(folder / "checkpoints" / reward, best / "rewards" / reward)
    (best / "configuration.json").write_text(json.dumps({"configuration": saved.to_json()}))
    for name in ("config.json", "program.json", "observed.json"):
        shutil.copy(folder / name, best.parent / name)
    loaded, model = scripted(oj.load(best), lambda request: f"{request.role} {request.seed % 7}")
    answer = loaded(question="a")["answer"]
    assert answer.startswith("say ") and len([one for one in model.requests if one.role == "say"]) == 3
    local_reward = oj.load_reward(folder)["say"]
    given = {"question": "a", "hint": next(c for c in loaded.trace(question="a").calls).outputs["hint"]}
    tried = sorted({f"say {one.seed % 7}" for one in model.requests if one.role == "say"})
    assert answer == max(tried, key=lambda text: local_reward.score(given, [text])[0])


def test_a_copied_best_that_chooses_among_samples_needs_no_run(folder, module, tmp_path):
    configuration = load_best(folder / "best")
    saved = configuration.replace("say", PerInstance((Prompt("Say it."),), reward_name(folder, configuration), 3))
    opened = RunFolder.__new__(RunFolder)
    opened.path = shutil.copytree(folder, tmp_path / "run", ignore=shutil.ignore_patterns("tape*"))
    opened.save_best(saved, {"accepted": []})
    copy = shutil.copytree(opened.path / "best", tmp_path / "elsewhere" / "best")
    answers = []
    for best in (opened.path, copy):
        loaded, _ = scripted(oj.load(best, module.words), lambda request: f"{request.role} {request.seed % 7}")
        answers.append(loaded(question="a"))
        assert loaded.system.by_name["say"].inputs == ("question", "hint")
    assert answers[0] == answers[1]


def test_samples_are_kept_by_a_server_with_the_local_rewards(folder):
    def say(request):
        return f"{request.role} {request.seed % 7}"

    here, _ = scripted(oj.load(folder, best_of={"say": 4}), say)
    with serving_app(reward_app_of(folder)) as address:
        there, _ = scripted(oj.load(folder, best_of={"say": 4}, reward=address), say)
        assert there(question="a") == here(question="a")
        refused = dataclasses.replace(there, configuration=here.configuration.replace("say", OTHER_REWARD))
        with pytest.raises(StopRun, match=r"/score refuses to score: .*no local reward 'unknown'"):
            refused(question="a")
    with pytest.raises(StopRun, match=r"no local rewards at .*/score \(.*launch/serve.py --reward="):
        there(question="a")
    with pytest.raises(ValueError, match="reward is 'host:1', expected the address of a server"):
        oj.load(folder, best_of=4, reward="host:1")


def test_a_saved_adapter_is_used(tmp_path):
    network, _ = tiny.model(RANDOM_CONFIG)
    config = LoraConfig(rank=4, alpha=8.0)
    weights = tiny.random_lora(init_lora(network.config, config, jax.random.key(0)))
    name = write_adapter(tmp_path / "best" / "adapters", network.config, "random:0", config, weights)
    say = oj.lora("Say it.", name="say", max_tokens=4)

    @oj.program(components=[say])
    async def program(question):
        return await say(question=question)

    answers = []
    for digest in ("", name):
        configuration = Configuration({"say": Adapter(digest)})
        saved = {"configuration": configuration.to_json()}
        (tmp_path / "best" / "configuration.json").write_text(json.dumps(saved))
        answers.append(oj.load(tmp_path, program, model="random:0")(question="a"))
    assert answers[0] != answers[1]


def test_a_graph_returns_its_output_fields(tmp_path):
    (tmp_path / "best").mkdir()
    values = {name: {"type": "prompt", "instruction": name, "demos": []} for name in ("describer", "sorter")}
    (tmp_path / "best" / "configuration.json").write_text(json.dumps({"configuration": values}))
    settings = {
        "benchmark": str(ROOT / "configs" / "own_system.py"),
        "system": {"language_model": {"model": "scripted"}},
        "data": {"train": 4, "val": 4, "test": 4},
    }
    (tmp_path / "config.json").write_text(json.dumps(settings))
    best, model = scripted(oj.load(tmp_path), lambda request: f" {request.role} says ")
    assert best(thing="apple") == {"sort": "sorter says"}
    assert {request.model for request in model.requests} == {"scripted"}
    assert best.trace(thing="apple").outputs["sort"] == "sorter says"
    with pytest.raises(ValueError, match="own_system reads thing, and thing is missing"):
        best()
    moved, model = scripted(oj.load(tmp_path, model="another"), lambda request: request.model)
    assert moved(thing="apple") == {"sort": "another"}
    graph = dataclasses.replace(best.system, completer=None)
    given, _ = scripted(oj.load(tmp_path, graph), lambda request: "a")
    assert given(thing="apple") == {"sort": "a"}


def test_a_script_that_starts_a_run_when_it_is_imported_is_refused(folder, tmp_path):
    code = MODULE + "\noj.optimize(words, letters, [], workdir='runs/x')\n"
    (tmp_path / "script.py").write_text(code)
    copy = shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoints", "tape*"))
    where = {"file": str(tmp_path / "script.py"), "relative": "script.py", "module": "__main__", "name": "words"}
    (copy / "program.json").write_text(json.dumps({"program": where, "metric": where}))
    with pytest.raises(ValueError, match=r"script.py starts a run when it is imported.*if __name__ == \"__main__\""):
        oj.load(copy)


def test_a_folder_without_a_best_says_so(tmp_path):
    with pytest.raises(FolderError, match=r"neither a run with a finished search nor its best"):
        oj.load(tmp_path, lambda question: question)
