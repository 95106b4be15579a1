"""Choosing among outputs for the input at hand while a system runs, and the components whose model is chosen."""

from __future__ import annotations

import collections
import dataclasses
import math

import pytest
from fakes import ScriptedCompleter
from systems import example, system, tool

from optimas_jax.core.running.execution import Job, run_many
from optimas_jax.core.selection import agreement, choose
from optimas_jax.core.system import Meter
from optimas_jax.core.types import Outcome, StopRun
from optimas_jax.core.values import Choice, Configuration, Grid, Hyperparameters, Models, PerInstance, Prompt
from optimas_jax.llm.component import LanguageModel, llm_component, model_selector

MODEL = LanguageModel("m", style="text", max_tokens=8)


class TableScorer:
    """Scores outputs by a function, and records its calls."""

    def __init__(self, score):
        self.score, self.calls = score, []

    async def scores(self, component, example_id, inputs, outputs, reward):
        self.calls.append((component, dict(inputs), [dict(output) for output in outputs], reward))
        return [self.score(inputs, output) for output in outputs]


def run(some_system, value, name="a", **inputs):
    configuration = Configuration({**some_system.default_configuration(), name: value})
    [trace] = run_many(some_system, [Job(configuration, example(**inputs), 0)], concurrency=1)
    return trace


def test_the_highest_score_is_kept_and_the_first_of_equals():
    assert choose([0.1, 0.7, 0.3], "argmax", 0) == 1
    assert choose([0.7, 0.7], "argmax", 5) == 0
    assert choose([0.70001, 0.70002], "argmax", 5) == 0  # the same but for the noise of a batch


def test_sampling_follows_the_exponential_of_the_score():
    drawn = collections.Counter(choose([0.0, math.log(3.0)], "sample", seed) for seed in range(2000))
    assert drawn[1] / 2000 == pytest.approx(0.75, abs=0.03)
    assert choose([800.0, -800.0], "sample", 1) == 0
    assert choose([0.0, 0.0], "sample", 7) == choose([0.0, 0.0], "sample", 7)


def adder(scorer=None, **changes):
    one = system(tool("a", ("q",), lambda q, x: q * x, grid=(1, 2, 3)), output="a_out")
    return dataclasses.replace(one, scorer=scorer, **changes)


def points(*xs):
    return tuple(Hyperparameters({"x": x}) for x in xs)


def test_every_value_makes_an_output_and_the_local_reward_keeps_one():
    scorer, meter = TableScorer(lambda inputs, output: -abs(output["a_out"] - 5)), Meter()
    trace = run(adder(scorer, meter=meter), PerInstance(points(1, 2, 3), "r"), q=2)
    assert trace.outputs["a_out"] == 4
    assert scorer.calls == [("a", {"q": 2}, [{"a_out": 2}, {"a_out": 4}, {"a_out": 6}], "r")]
    assert meter == Meter(runs=1, executions=3)


def test_outputs_that_are_all_equal_need_no_score():
    scorer = TableScorer(lambda inputs, output: 0.0)
    assert run(adder(scorer), PerInstance(points(1, 2, 3), "r"), q=0).outputs["a_out"] == 0
    assert not scorer.calls


def test_a_system_without_a_scorer_says_so():
    with pytest.raises(StopRun, match="component 'a' chooses its output by the local reward 'r'"):
        run(adder(), PerInstance(points(1, 2), "r"), q=1)


def writer(**changes):
    parts = {"name": "a", "description": "", "inputs": ("q",), "output": "a_out", "instruction": "Say."}
    return llm_component(**{**parts, "language_model": MODEL, **changes})


def test_best_of_n_asks_for_its_own_answer_and_hotter_ones():
    model = ScriptedCompleter(lambda request: f"hot {request.seed}" if request.temperature else "cold")
    scorer = TableScorer(lambda inputs, output: float(output["a_out"] != "cold"))
    one = dataclasses.replace(system(writer(), output="a_out", metric=lambda o, g: 0.0), completer=model, scorer=scorer)
    trace = run(one, PerInstance((Prompt("Say."),), "r", samples=3, temperature=0.7))
    assert [request.temperature for request in model.requests] == [0.0, 0.7, 0.7]
    assert len({request.seed for request in model.requests}) == 3
    assert trace.outputs["a_out"] == f"hot {model.requests[1].seed}"
    assert run(one, PerInstance((Prompt("Say."),), "r", samples=3, temperature=0.7)) == trace


def test_a_candidate_that_failed_is_kept_only_where_all_did():
    answers = {"bad": "", "good": "yes"}
    model = ScriptedCompleter(lambda request: answers[request.model])
    grid = Grid({"model": ("bad", "good")})
    component = writer(space=grid, language_model=dataclasses.replace(MODEL, model="bad"))
    one = dataclasses.replace(
        system(component, output="a_out", metric=lambda o, g: 1.0),
        completer=model,
        scorer=TableScorer(lambda inputs, output: -100.0),
    )
    both = PerInstance(tuple(grid.values()), "r")
    assert run(one, both).outputs["a_out"] == "yes"
    answers["good"] = ""
    trace = run(one, both)
    assert trace.outcome is Outcome.PARSE_ERROR and trace.score == 0.0


# Settings of a language model


def test_settings_of_a_language_model_are_hyperparameters():
    model = ScriptedCompleter(lambda request: "x")
    component = writer(
        space=Grid({"temperature": (0.0, 0.7), "max_tokens": (8, 16), "model": ("m", "n")}), stop=("\n",)
    )
    assert component.default == Hyperparameters({"temperature": 0.0, "max_tokens": 8, "model": "m"})
    one = dataclasses.replace(system(component, output="a_out", metric=lambda o, g: 0.0), completer=model)
    run(one, Hyperparameters({"temperature": 0.7, "max_tokens": 16, "model": "n"}))
    run(one, component.default)
    hot, cold = model.requests
    assert (hot.temperature, hot.max_tokens, hot.model, hot.stop) == (0.7, 16, "n", ("\n",))
    assert cold.messages == hot.messages and "Say." in cold.messages[0].content
    assert (cold.temperature, cold.max_tokens, cold.model) == (0.0, 8, "m")


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ({"temperature": (0.0, -0.1)}, "component 'a': grid.temperature is -0.1, expected at least 0"),
        ({"max_tokens": (8, 0)}, "max_tokens is 0, expected at least 1"),
        ({"max_tokens": (8, 8.5)}, "max_tokens is 8.5, expected int"),
        ({"model": ("m", 3)}, "model is 3, expected str"),
        ({"top_p": (1.0, 1.5)}, "top_p is 1.5, expected above 0 and at most 1"),
        ({"warmth": (0.0,)}, "unknown setting 'warmth' of a language model; known: model, temperature"),
        ({"temperature": (0.5, 0.7)}, "is not on the grid"),
    ],
)
def test_settings_that_no_language_model_has_are_named_where_they_enter(grid, said):
    with pytest.raises(ValueError, match=said):
        writer(space=Grid(grid))


def test_a_selector_names_the_model_that_another_component_asks():
    model = ScriptedCompleter(lambda request: f"I am {request.model}")
    select = model_selector(
        name="router", description="", inputs=("q",), output="chosen", models=Models(("small", "large"))
    )
    scorer = TableScorer(lambda inputs, output: float((output["chosen"] == "large") == (inputs["q"] > 5)))
    one = dataclasses.replace(
        system(select, writer(model_from="chosen"), output="a_out", metric=lambda o, g: 0.0),
        completer=model,
        scorer=scorer,
    )
    assert one.parents["a"] == ("router",)
    assert run(one, Choice("large"), "router").outputs["a_out"] == "I am large"
    both = PerInstance((Choice("small"), Choice("large")), "r")
    assert [run(one, both, "router", q=q).outputs["a_out"] for q in (3, 8)] == ["I am small", "I am large"]
    assert "large" not in model.requests[-1].messages[0].content  # the name is for the engine, not for the model
    assert len(model.requests) == 3  # choosing a model asks nobody


def test_agreement_is_the_mean_overlap_with_the_other_outputs():
    assert agreement(["Rome", "rome", "Paris"]) == pytest.approx([0.5, 0.5, 0.0])
    assert agreement(["a b", "a"]) == pytest.approx([2 / 3, 2 / 3])
    assert agreement(["alone"]) == [0.0] and agreement([]) == []
    assert agreement(["", ""]) == [1.0, 1.0]
