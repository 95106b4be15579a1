"""The whole loop on programs: the same as on graphs, and what only programs have."""

import dataclasses
import io
import json
import os
import random
import subprocess
import sys

import pytest
from as_program import as_program
from enumerable import ExactRewards, enumerable_system, make_run, search
from fakes import ScriptedCompleter
from rich.console import Console

import optimas_jax as oj
from optimas_jax.core.program import ProgramError
from optimas_jax.core.types import StopRun
from optimas_jax.llm.component import LanguageModel
from optimas_jax.loop.steps.observe import observed
from optimas_jax.report.console import ConsoleProgress


@pytest.mark.parametrize("settings", [{"score": "local"}, {"score": "off"}, {"score": "global", "ranking": "mean"}])
@pytest.mark.parametrize("seed", [2, 5])
def test_a_search_of_a_program_is_that_of_the_same_graph(tmp_path, seed, settings):
    found = []
    for form in (lambda graph: graph, as_program):
        system = form(enumerable_system(seed))
        folder = tmp_path / form.__name__
        engine = ExactRewards(enumerable_system(seed), folder)
        run = make_run(system, folder, seed=seed, mode="improved", engine=engine, iterations=5, labels=2, **settings)
        with run.host.ledger.phase("optimize"):
            run = observed(run)
        reward = "exact" if settings["score"] == "local" else ""
        state = search(run, reward)
        tape = sorted(request.key for request in run.host.system.completer._inner.requests)
        found.append((state.configuration, state.accepted, state.evidence, state.val_traces, sorted(set(tape))))
    assert found[0] == found[1]


def drafting(revisions):
    """A program that drafts until a check is content: a component is called one to three times."""
    word = oj.setting("a", choices=("a", "b", "c"), name="word")

    @oj.component(suffix=oj.setting("x", choices=("x", "y")))
    def revise(suffix, text):
        return text + suffix

    async def program(q):
        text, rounds = word.value, 0
        while rounds < revisions[q]:
            text = await revise(text)
            rounds += 1
        return {"text": text}

    return oj.program(program, components=[word, revise])


def test_a_value_is_worth_what_all_its_calls_bring(tmp_path):
    """Two revisions with y score 1, one of each 0.5; groups change one call alone."""
    program = drafting({"one": 2, "two": 1, "three": 0})
    system = program.system(lambda outputs: outputs["text"].count("y") / 2, ("q",), LanguageModel("scripted"))
    system = dataclasses.replace(system, completer=ScriptedCompleter(lambda request: ""))
    run = make_run(system, tmp_path, seed=0, mode="improved", engine=None, iterations=6, labels=3, score="off")
    run = observed(run)
    assert run.host.system.by_name["revise"].inputs == ("text",)
    state = search(run, "")
    assert state.configuration["revise"].settings == {"suffix": "y"}
    changed = [one for one in state.accepted if one["component"] == "revise"]
    assert changed[0]["expected_gain"] == pytest.approx((1.0 + 0.5 + 0.0) / 3)
    groups = [g for g in state.evidence if g.component == "revise" and len(g.candidates) > 1]
    assert {g.example_id for g in groups} <= {"two"}  # where it is called once, the reward is that of its answer


def test_a_program_that_is_not_repeatable_is_refused_with_the_call_that_differs(tmp_path):
    draw = random.Random()

    @oj.component(suffix=oj.setting("x", choices=("x", "y")))
    def revise(suffix, text, number):
        return text + suffix

    async def program(q):
        return {"text": await revise(q, draw.random())}

    system = oj.program(program, components=[revise]).system(lambda outputs: 0.0, ("q",), LanguageModel(""))
    run = make_run(system, tmp_path, seed=0, mode="improved", engine=None, iterations=1, score="off")
    with pytest.raises(ProgramError, match=r"two runs .* differ: call 1 of 'revise' has another number"):
        observed(run)
    run.tape.close()


async def shout(question):
    return {"answer": (await WORDS(question=question)).strip()}


WORDS = oj.prompt("Say the word.", max_tokens=4)


def grade(example, made):
    right = made["answer"] == example["wanted"]
    return float(right), "" if right else f"The word is {example['wanted']}, not {made['answer']}."


def test_a_program_is_optimised_saved_and_called_from_python(tmp_path):
    """With a model of random weights: everything runs, nothing is gained."""
    rows = [{"question": f"word {i}?", "wanted": str(i)} for i in range(36)]
    settings = {"reward.model": "random:0", "optimize.iterations": 1, "offline.groups": 0, "optimize.score": "off"}
    said = io.StringIO()
    result = oj.optimize(
        shout,
        grade,
        [*rows, rows[0]],
        model=LanguageModel("random:0", max_tokens=4),
        workdir=tmp_path / "run",
        config=settings,
        progress=ConsoleProgress(Console(file=said)),
    )
    assert "1 rows repeat the inputs of an earlier row" in said.getvalue()
    assert result.gain == 0.0 and not result.confirmed and "grade 0.000 -> 0.000" in repr(result)
    assert result.best["WORDS"].instruction == "Say the word."
    tested = json.loads((tmp_path / "run" / "results.json").read_text())["n"]
    assert tested == 7
    called = result.best(question="word 1?")
    assert called == oj.load(tmp_path / "run" / "best", shout)(question="word 1?") and set(called) == {"answer"}


def test_settings_that_do_not_exist_are_refused_before_anything_runs(tmp_path):
    with pytest.raises(ValueError, match=r"optimize.*iteration"):
        oj.optimize(
            shout,
            grade,
            [{"question": str(i), "wanted": ""} for i in range(40)],
            workdir=tmp_path,
            config={"optimize.iteration": 1},
            progress=ConsoleProgress(quiet=True),
        )
    assert not (tmp_path / "config.json").exists()


FILE = """
import words  # beside this file

from ml_collections import config_dict

import optimas_jax as oj
from optimas_jax.presets import command_line, own_system

_rows = [{"question": f"word {i}?", "wanted": str(i)} for i in range(34)]
_mine = oj.benchmark(words.shout, lambda example, made: float(made["answer"] == example["wanted"]), _rows)
METRIC, load, build = _mine.METRIC, _mine.load, _mine.build


def get_config(variant=""):
    config = own_system(__file__, train=14, val=6, confirm=6, test=8)
    return config_dict.ConfigDict(command_line(config, config_dict.placeholder))
"""
WORDS_MODULE = """
import optimas_jax as oj

say = oj.prompt("Say the word.", max_tokens=4)


def shout(question):
    return {"answer": say(question=question)}
"""


@pytest.mark.long
def test_a_program_is_optimised_by_a_configuration_file_beside_it(tmp_path):
    (tmp_path / "mine.py").write_text(FILE)
    (tmp_path / "words.py").write_text(WORDS_MODULE)
    settings = {
        "system.language_model.model": "random:0",
        "proposer.model": "random:0",
        "optimize.score": "off",
        "optimize.iterations": 1,
        "offline.groups": 0,
    }
    flags = [f"--config.{path}={value}" for path, value in settings.items()]
    command = [sys.executable, "launch/run.py", f"--config={tmp_path / 'mine.py'}", f"--workdir={tmp_path / 'run'}"]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "results.json").read_text())["n"] == 8


def test_a_loaded_program_asks_the_server_of_its_run(tmp_path, monkeypatch):
    """And the addresses in the environment, which the SDKs read, where no server is configured."""
    (tmp_path / "best").mkdir()
    prompt = {"type": "prompt", "instruction": "Say the word.", "demos": []}
    (tmp_path / "best" / "configuration.json").write_text(json.dumps({"configuration": {"WORDS": prompt}}))
    server, model = {"base_url": "http://127.0.0.1:9/v1", "retries": {"attempts": 1}}, {"model": "openai:m"}
    saved = {"benchmark": "shout", "seed": 3, "server": server, "system": {"language_model": model}}
    (tmp_path / "config.json").write_text(json.dumps(saved))
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    with pytest.raises(StopRun, match=r"http://127.0.0.1:9/v1 does not answer"):
        oj.load(tmp_path / "best", shout)(question="q")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:10/v1")
    (tmp_path / "config.json").write_text(json.dumps({**saved, "server": {"retries": {"attempts": 1}}}))
    with pytest.raises(StopRun, match=r"http://127.0.0.1:10/v1 does not answer"):
        oj.load(tmp_path / "best", shout)(question="q")


def test_an_evaluation_is_quiet_on_libraries(tmp_path):
    script = (
        "import optimas_jax as oj\n"
        "say = oj.prompt('Say it.', name='say')\n"
        "async def program(question): return await say(question=question)\n"
        "model = oj.LanguageModel('random:0', max_tokens=2)\n"
        "program = oj.program(program, components=[say])\n"
        "oj.evaluate(program, lambda outputs: 1.0, [{'question': 'q'}], model=model, workdir='out')\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRANSFORMERS_VERBOSITY"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert not ended.stderr
