"""Own steps of a search: what they are given, what they may return, whose folder it is."""

import asyncio
import dataclasses
import importlib
import json
import math
import sys

import numpy as np
import pytest
from fakes import ScriptedCompleter
from front_door import MANY, SETTINGS

import optimas_jax as oj
from optimas_jax.benchmarks.modules import import_file
from optimas_jax.core.folder.files import FolderError
from optimas_jax.core.text.frames import UserBug, error_text
from optimas_jax.core.values import Choice, Hyperparameters, PerInstance, Prompt, value_to_json
from optimas_jax.loop.config import parse_config
from optimas_jax.loop.setup import build
from optimas_jax.loop.stages import run_stages
from optimas_jax.report.console import ConsoleProgress

MODEL = oj.LanguageModel("random:0", max_tokens=16)
events = oj.events


class Lines(ConsoleProgress):
    def __init__(self):
        super().__init__(quiet=True)
        self.lines = []

    def line(self, text):
        self.lines.append(text)


@oj.component(suffix=oj.setting("x", choices=("x", "y", "z")))
def add(suffix, question):
    """Adds a suffix."""
    return question + suffix


@oj.component
def keep(text):
    """Keeps a text."""
    return text


say = oj.prompt("Say it.", name="say")
route = oj.choice("left", choices=("left", "right"), name="route")


async def adding(question):
    return {"text": await keep(await add(question))}


async def saying(question):
    return {"text": await keep(await say(question=question))}


def grade(outputs):
    return float(outputs["text"].endswith("y"))


def optimize(folder, hooks, program=adding, metric=grade, progress=None, callbacks=(), **config):
    settings = {**SETTINGS, "optimize.iterations": 1, **{name.replace("__", "."): one for name, one in config.items()}}
    if hooks is not None and getattr(hooks, "local_reward", None) is not None:
        settings = {**settings, "optimize.score": "local"}
    return oj.optimize(
        program,
        metric,
        MANY,
        model=MODEL,
        workdir=folder,
        config=settings,
        hooks=hooks,
        callbacks=callbacks,
        progress=progress or ConsoleProgress(quiet=True),
    )


def of(folder, kind):
    return [event for event in events.read_events(folder) if isinstance(event, kind)]


@pytest.fixture
def scripted(monkeypatch):
    """Answers of all models; returns the requests."""
    models = []

    def answer(request):
        if request.role == "proposer":
            return f"Say y, way {request.key[:4]}."
        return "y" if "Say y" in request.messages[0].content else "x"

    def make(*arguments):
        models.append(ScriptedCompleter(answer))
        return models[-1]

    monkeypatch.setattr(build, "make_completer", make)
    return models


# What they are given


def test_a_proposer_is_given_the_component_with_its_runs(tmp_path, scripted):
    seen = []

    def look(task):
        seen.append(task)
        return []

    optimize(tmp_path / "run", oj.Hooks(propose=look), saying, optimize__proposers="own:look", optimize__iterations=2)
    first, second = seen
    assert (first.component, first.inputs, first.outputs) == ("say", ("question",), ("say",))
    assert first.current == Prompt("Say it.") and first.space.max_demos == 4 and first.iteration == 0
    assert second.iteration == 1 and second.seed != first.seed
    run = first.examples[0]
    assert (run.score, run.feedback, run.example.gold["wanted"]) == (0.0, "", run.example.inputs["question"][1:])
    assert [call.outputs["say"] for call in run.calls] == ["x"] and len(run.trace.calls) == 2
    assert dataclasses.is_dataclass(first)
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.component = "other"


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_completions_of_a_proposer_are_draws_on_the_tape(tmp_path, scripted, kind):
    """The same text twice is another draw; a repetition asks for nothing."""
    asked = []

    def plain(task):
        asked.append([task.complete("Write it."), task.complete("Write it."), task.complete("Else.", temperature=0.0)])
        return asked[-1][:1]

    async def coroutine(task):
        asked.append(list(await asyncio.gather(task.complete("Write it."), task.complete("Write it."))))
        asked[-1].append(await task.complete("Else.", temperature=0.0))
        return asked[-1][:1]

    hooks = oj.Hooks(propose={"mine": plain if kind == "plain" else coroutine})
    result = optimize(tmp_path / "run", hooks, saying, optimize__proposers="own:mine")
    requests = [one for one in scripted[0].requests if one.role == "proposer"]
    assert len({one.key for one in requests}) == len(requests) == 3 == len(set(asked[0]))
    assert {one.temperature for one in requests} == {0.7, 0.0}
    assert result.best["say"].instruction.startswith("Say y, way")
    optimize(tmp_path / "run", hooks, saying, optimize__proposers="own:mine")
    assert asked[1] == asked[0] and not scripted[1].requests


def test_completions_of_a_proposer_count_for_the_budget(tmp_path, scripted):
    def greedy(task):
        return [task.complete(f"Write {number}.") for number in range(10_000)]

    shown = Lines()
    hooks = oj.Hooks(propose=greedy)
    settings = {"optimize.proposers": "own:greedy", "optimize.max_tokens": 9_000, **SETTINGS}
    oj.optimize(
        saying, grade, MANY, model=MODEL, workdir=tmp_path / "run", config=settings, hooks=hooks, progress=shown
    )
    [end] = of(tmp_path / "run", events.SearchEnd)
    assert end.reason == "the budget allows no further step"
    assert not any("own proposer" in line for line in shown.lines)  # which is not at fault
    assert of(tmp_path / "run", events.OutOfBudget)[0].spent.tokens <= 9_000


def test_a_pick_rule_is_given_gaps_visits_gains_and_costs(tmp_path):
    seen = []

    async def first(task):
        seen.append(task)
        return task.components[0].name

    optimize(tmp_path / "run", oj.Hooks(pick=first), optimize__iterations=2)
    [before], [after] = (task.components for task in seen)
    assert (before.name, before.visits, before.gains, before.gap, before.cost) == ("add", 0, (), 0.0, 0.0)
    assert after.visits == 1 and after.gains == (1.0,) and [task.iteration for task in seen] == [0, 1]


def test_an_acceptance_is_given_paired_scores_at_every_look(tmp_path):
    seen = []

    def patient(task):
        seen.append(task)
        return "continue" if len(task.after) < task.n else ("accept", "it has waited")

    result = optimize(tmp_path / "run", oj.Hooks(accept=patient))
    assert [len(task.after) for task in seen] == list(seen[0].looks) and seen[0].looks[-1] == seen[0].n
    assert all(len(task.before) == len(task.after) for task in seen)
    assert seen[0].current == Hyperparameters({"suffix": "x"}) and seen[0].proposal != seen[0].current
    assert result.proposals["reason"].str.contains("own:patient: it has waited").any()


def test_an_own_local_reward_is_given_fields_and_scores_once(tmp_path):
    seen = []

    async def last(component, inputs, candidates):
        seen.append((component, dict(inputs), [dict(one) for one in candidates]))
        return np.array([fields["add"].endswith("y") for fields in candidates], np.float32)

    hooks = oj.Hooks(local_reward=last)
    settings = {"optimize__ranking": "mean", "optimize__labels": 0}
    result = optimize(tmp_path / "run", hooks, **settings)
    ranked = [(one.value.settings["suffix"], one.local_gain) for one in of(tmp_path / "run", events.Proposal)]
    assert ranked == [("y", 1.0), ("z", 0.0)] and result.best["add"].settings["suffix"] == "y"
    component, inputs, candidates = seen[0]
    assert component == "add" and set(inputs) == {"question"} and set(candidates[0]) == {"add"}
    count = len(seen)
    optimize(tmp_path / "run", hooks, **settings)
    assert len(seen) == count  # the tape has its scores


@pytest.mark.parametrize("suffix", ["y", "z"])
def test_another_local_reward_ranks_otherwise(tmp_path, suffix):
    def last(component, inputs, candidates):
        return [float(fields["add"].endswith(suffix)) for fields in candidates]

    optimize(tmp_path / "run", oj.Hooks(local_reward=last), optimize__ranking="mean", optimize__labels=0)
    assert of(tmp_path / "run", events.Proposal)[0].value.settings["suffix"] == suffix


# What they return


VALUES = "the own proposer 'mine' returned {}, expected "


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, VALUES.format("None") + "a list of values of 'add': a way through it has no return"),
        ("y", VALUES.format("'y'") + "a list of values of 'add'"),
        (["q"], VALUES.format("'q'") + "values of 'add': settings among {'suffix': ['x', 'y', 'z']}"),
        ([{"suffix": "y", "k": 1}], VALUES.format("{'suffix': 'y', 'k': 1}") + "values of 'add': settings among"),
        ([Choice("y")], VALUES.format("Choice(name='y')") + "values of 'add': settings among"),
        ([None], VALUES.format("None") + "values of 'add': settings among"),
    ],
)
def test_what_is_no_value_ends_the_run_with_what_is_allowed(tmp_path, returned, message):
    with pytest.raises(UserBug) as caught:
        optimize(tmp_path / "run", oj.Hooks(propose={"mine": lambda task: returned}), optimize__proposers="own:mine")
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("returned", [["y"], ({"suffix": "y"},), [Hyperparameters({"suffix": "y"})]])
def test_values_may_be_given_as_plain_data(tmp_path, returned):
    hooks = oj.Hooks(propose={"mine": lambda task: returned})
    result = optimize(tmp_path / "run", hooks, optimize__proposers="own:mine")
    assert result.best["add"] == Hyperparameters({"suffix": "y"})
    assert {event.kind for event in of(tmp_path / "run", events.Verdict)} == {"own:mine"}


def test_names_of_a_choice_may_be_given(tmp_path):
    async def choosing(question):
        return {"text": await keep(f"{question}{await add(question)}{route.value}")}

    hooks = oj.Hooks(propose={"mine": lambda task: ["right"] if task.component == "route" else []})
    result = optimize(
        tmp_path / "run",
        hooks,
        oj.program(choosing, components=[keep, add, route]),
        lambda outputs: float(outputs["text"].endswith("right")),
        optimize__proposers="own:mine",
        optimize__order="route",
    )
    assert "right" in str(result.best["route"])


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (["", " "], "empty"),
        (["y" * 2001], "longer than 2000 characters"),
        ([Prompt("Say y.", (oj.Demo({"question": "q"}, {"say": "y"}),) * 5)], "more than 4 demonstrations"),
    ],
)
def test_texts_that_are_too_long_are_counted_as_those_of_other_optimisers(tmp_path, scripted, values, reason):
    hooks = oj.Hooks(propose={"mine": lambda task: [*values, "Say y."]})
    result = optimize(tmp_path / "run", hooks, saying, optimize__proposers="own:mine")
    [told] = of(tmp_path / "run", events.Proposed)
    assert told.dropped == {reason: len(values)} and result.best["say"].instruction == "Say y."


@pytest.mark.parametrize(
    ("hooks", "message"),
    [
        (
            oj.Hooks(pick=lambda task: "nobody"),
            "the own pick rule '<lambda>' returned 'nobody', expected the name of a component with something left to "
            "try: add",
        ),
        (oj.Hooks(pick=lambda task: None), "the own pick rule '<lambda>' returned None, expected the name of a"),
        (
            oj.Hooks(accept=lambda task: True),
            "the own acceptance '<lambda>' returned True, expected 'accept', 'refuse' or 'continue', or one of",
        ),
        (oj.Hooks(accept=lambda task: ("accept", 3)), "the own acceptance '<lambda>' returned ('accept', 3), expected"),
        (oj.Hooks(accept=lambda task: ["accept"]), "the own acceptance '<lambda>' returned ['accept'], expected"),
        (
            oj.Hooks(accept=lambda task: "continue"),
            "the own acceptance '<lambda>' returned 'continue', expected 'accept' or 'refuse' after all 5 validation",
        ),
        *(
            (
                oj.Hooks(local_reward=lambda component, inputs, candidates, wrong=wrong: wrong(candidates)),
                "the own local reward '<lambda>' returned ",
            )
            for wrong in (
                lambda candidates: None,
                lambda candidates: 1.0,
                lambda candidates: [1.0],
                lambda candidates: [math.nan] * len(candidates),
                lambda candidates: [math.inf] * len(candidates),
                lambda candidates: ["1"] * len(candidates),
                lambda candidates: {"a": 1},
                lambda candidates: np.zeros((len(candidates), 1)),
            )
        ),
    ],
)
def test_what_cannot_be_used_ends_the_run_with_what_is_expected(tmp_path, hooks, message):
    with pytest.raises(UserBug) as caught:
        optimize(tmp_path / "run", hooks, optimize__ranking="mean" if hooks.local_reward else "corrected")
    assert str(caught.value).startswith(message)
    if hooks.local_reward:
        assert "finite numbers, one for each candidate of 'add'" in str(caught.value)


def broken(*arguments):
    return {}["nothing"]


@pytest.mark.parametrize("seam", ["pick", "accept", "local_reward"])
def test_an_exception_ends_the_run_with_the_user_s_frames_alone(tmp_path, seam):
    with pytest.raises(UserBug) as caught:
        optimize(tmp_path / "run", oj.Hooks(**{seam: broken}))
    text = error_text(caught.value)
    assert "raised KeyError: 'nothing' (test_hooks.py, line" in text and "optimas_jax/loop" not in text
    assert 'return {}["nothing"]' in text
    fixed = {"pick": lambda task: "add", "accept": lambda task: "accept", "local_reward": lambda c, i, o: [0] * len(o)}
    mended = fixed[seam]
    mended.__name__ = "broken"  # as the same function after an edit
    assert optimize(tmp_path / "run", oj.Hooks(**{seam: mended})).results


def test_an_exception_of_a_proposer_fails_its_proposals_alone(tmp_path):
    shown = Lines()
    hooks = oj.Hooks(propose={"bad": broken, "good": lambda task: ["y"]})
    result = optimize(tmp_path / "run", hooks, progress=shown, optimize__proposers="own:bad,own:good")
    assert result.best["add"] == Hyperparameters({"suffix": "y"})
    [dropped] = of(tmp_path / "run", events.Dropped)
    assert (dropped.reason, dropped.kind) == ("own proposer failed", "own:bad") and "KeyError" in dropped.text
    [line] = [line for line in shown.lines if "own proposer" in line]
    assert "the own proposer 'bad' raised KeyError: 'nothing' (test_hooks.py" in line
    assert result.results["dropped"]["add"]["own proposer failed"] == 1


# What is refused before anything runs


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"propose": 3}, r"the own proposer 'int' is 3, expected a function of \(task\)"),
        ({"propose": {}}, "propose is empty: give a function, several by name, or leave it out"),
        ({"propose": {"a b": print}}, "an own proposer has the name 'a b': letters, digits and _ are allowed"),
        ({"propose": {"a,b": print}}, "an own proposer has the name 'a,b'"),
        ({"propose": lambda task: []}, "an own proposer has the name '<lambda>'.*propose={\"NAME\": function}"),
        ({"pick": "gap"}, r"pick is 'gap', expected a function of \(task\)"),
        ({"pick": lambda: "a"}, r"pick is <lambda>\(\), expected a function of \(task\)"),
        ({"accept": lambda old, new: "a"}, r"accept is <lambda>\(old, new\), expected a function of \(task\)"),
        ({"local_reward": lambda outputs: 1}, r"local_reward is .*, expected a function of \(component, inputs, cand"),
        ({"accept": dict}, "accept is <class 'dict'>, expected a function"),
    ],
)
def test_what_is_no_hook_is_refused_where_it_is_given(fields, message):
    with pytest.raises(ValueError, match=message):
        oj.Hooks(**fields)


def yields(task):
    yield "y"


@pytest.mark.parametrize(
    ("hooks", "config", "message"),
    [
        ({"pick": broken}, {}, r"hooks is a dict, expected Hooks\(propose="),
        (None, {"optimize__proposers": "own:mine"}, "names own:mine; own proposers are none: hooks=Hooks"),
        (oj.Hooks(propose={"a": broken}), {"optimize__proposers": "own:b"}, "names own:b; own proposers are own:a: "),
        (None, {"optimize__proposers": "mine"}, "known: demos, opro, .* and own:NAME for an own proposer"),
        (None, {"optimize__score": "own"}, "config.optimize.score is 'own', and there is no own local reward"),
    ],
)
def test_settings_that_do_not_fit_the_hooks_are_refused(tmp_path, hooks, config, message):
    with pytest.raises(ValueError, match=message):
        optimize(tmp_path / "run", hooks, **config)
    assert not (tmp_path / "run").exists()


def test_a_generator_is_no_proposer():
    with pytest.raises(ValueError, match="the own proposer 'yields' is 'yields', which has a yield: return the whole"):
        oj.Hooks(propose=yields)


def test_another_score_beside_an_own_local_reward_is_refused(tmp_path):
    with pytest.raises(ValueError, match="score is 'off', and there is an own local reward, which takes the place"):
        oj.optimize(
            adding, grade, MANY, model=MODEL, workdir=tmp_path, config=SETTINGS, hooks=oj.Hooks(local_reward=broken)
        )


# Whose folder it is


def first_one(task):
    return task.components[0].name


def accept_all(task):
    return "accept"


def test_a_folder_knows_its_hooks(tmp_path):
    folder = tmp_path / "run"
    optimize(folder, oj.Hooks(pick=first_one))
    identity = json.loads((folder / "identity.json").read_text())
    assert (
        identity["hooks"] == ["the own pick rule 'first_one'"] and "the own pick rule 'first_one'" in identity["code"]
    )
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.suffix == ".json"}
    for hooks, changes in (
        (None, "the own pick rule 'first_one' is gone"),
        (oj.Hooks(pick=first_one, accept=accept_all), "the own acceptance 'accept_all' is new"),
        (oj.Hooks(pick=lambda task: "add"), "'first_one' is gone, the own pick rule '<lambda>' is new"),
    ):
        with pytest.raises(FolderError, match=changes):
            optimize(folder, hooks)

    def first_one_(task):
        return task.components[-1].name

    first_one_.__name__ = "first_one"
    with pytest.raises(FolderError, match="the own pick rule 'first_one' changed"):
        optimize(folder, oj.Hooks(pick=first_one_))
    assert optimize(folder, oj.Hooks(pick=first_one)).results
    after = {name: (folder / name).read_bytes() for name in before}
    assert {name: data for name, data in after.items() if not name.startswith("run")} == {
        name: data for name, data in before.items() if not name.startswith("run")
    }


def test_another_own_proposer_is_another_configuration(tmp_path):
    optimize(tmp_path / "run", oj.Hooks(propose={"a": lambda task: ["y"]}))
    with pytest.raises(FolderError, match=r"config.optimize.proposers: 'demos,feedback,opro,own:a' -> .*own:b'"):
        optimize(tmp_path / "run", oj.Hooks(propose={"b": lambda task: ["y"]}))


def test_a_run_without_hooks_has_the_folder_that_it_had(tmp_path):
    optimize(tmp_path / "run", None)
    identity = json.loads((tmp_path / "run" / "identity.json").read_text())
    assert set(identity) == {"declared", "code"}
    assert '"proposers": "demos,feedback,opro"' in (tmp_path / "run" / "config.json").read_text()


def test_a_plan_runs_no_hook(tmp_path):
    hooks = oj.Hooks(propose={"mine": broken}, pick=broken, accept=broken, local_reward=broken)
    settings = {name: value for name, value in SETTINGS.items() if name != "optimize.score"}
    quiet = ConsoleProgress(quiet=True)
    for asked in (None, "own:mine"):
        config = settings if asked is None else {**settings, "optimize.proposers": asked}
        planned = oj.plan(
            saying,
            grade,
            MANY,
            model=MODEL,
            workdir=tmp_path,
            config=config,
            hooks=hooks,
            callbacks=[broken],
            progress=quiet,
        )
        assert "own functions are not run for a plan" in " ".join(planned.host.unknown)
        assert planned.host.calls["optimize: propose"]["proposer"] > 0


# By configuration file, and afterwards


FILE = """
import words  # beside this file

from ml_collections import config_dict

import optimas_jax as oj
from optimas_jax.presets import command_line, own_system

_rows = [{"question": f"word {i}?", "wanted": str(i)} for i in range(34)]
_mine = oj.benchmark(words.program, words.grade, _rows)
METRIC, load, build = _mine.METRIC, _mine.load, _mine.build
HOOKS = oj.Hooks(pick=words.pick, propose=words.propose, local_reward=words.reward)
CALLBACKS = [words.tell]


def get_config(variant=""):
    config = own_system(__file__, train=14, val=6, confirm=6, test=8)
    return config_dict.ConfigDict(command_line(config, config_dict.placeholder))
"""
WORDS = """
import optimas_jax as oj

told = []


@oj.component(model=oj.choice("left", choices=("left", "right"), name="model"))
def say(model, question):
    \"\"\"Says it.\"\"\"
    return f"{question} {model}"


@oj.component
def keep(text):
    \"\"\"Keeps a text.\"\"\"
    return text


def program(question):
    return {"text": keep(say(question))}


def grade(example, outputs):
    return float(outputs["text"].endswith("right"))


def pick(task):
    return "say"


def propose(task):
    return ["right"]


def reward(component, inputs, candidates):
    return [fields["say"].endswith("right") for fields in candidates]


def tell(event):
    told.append(type(event).__name__)
"""


def test_a_configuration_file_names_hooks_and_callbacks(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(FILE)
    (tmp_path / "words.py").write_text(WORDS)
    monkeypatch.delitem(sys.modules, "words", raising=False)
    module = import_file(tmp_path / "mine.py")
    settings = module.get_config().to_dict()
    plain = {
        "reward": {"model": "random:0"},
        "offline": {"groups": 0},
        "optimize": {"iterations": 1, "ranking": "mean"},
    }
    for section, fields in plain.items():
        settings[section] |= fields
    settings["system"]["language_model"]["model"] = settings["proposer"]["model"] = "random:0"
    run_stages(parse_config(settings), tmp_path / "run", "all", ConsoleProgress(quiet=True))
    told = sys.modules["words"].told
    assert told[0] == "Begin" and told[-1] == "End" and "Accept" in told
    assert of(tmp_path / "run", events.Pick)[0].rule == "own:pick"
    assert "own:propose" in {one.kind for one in of(tmp_path / "run", events.Verdict)}
    identity = json.loads((tmp_path / "run" / "identity.json").read_text())
    assert identity["hooks"] == [
        "the own local reward 'reward'",
        "the own pick rule 'pick'",
        "the own proposer 'propose'",
    ]


def test_a_saved_choice_by_an_own_local_reward_finds_its_function_again(tmp_path, monkeypatch):
    """In another process it is imported; a function without a file is asked for."""
    (tmp_path / "words.py").write_text(WORDS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "words", raising=False)
    words = importlib.import_module("words")
    folder = tmp_path / "run"
    optimize(folder, oj.Hooks(local_reward=words.reward), words.program, words.grade)
    value = PerInstance((Hyperparameters({"model": "left"}), Hyperparameters({"model": "right"})), "own")
    saved = json.loads((folder / "best" / "configuration.json").read_text())
    (folder / "best" / "configuration.json").write_text(
        json.dumps({**saved, "configuration": {"say": value_to_json(value)}})
    )
    assert oj.load(folder)(question="q") == {"text": "q right"}
    source = json.loads((folder / "program.json").read_text())
    source["local_reward"] = {"reason": "it was defined in a notebook or a prompt, not in a file"}
    (folder / "program.json").write_text(json.dumps(source))
    with pytest.raises(ValueError, match=r"the local_reward of .* cannot be imported, as it was defined in a notebook"):
        oj.load(folder)
