"""LLMSelector: one step by hand, and a search that uses it."""

from __future__ import annotations

import dataclasses
import json

import pytest
from enumerable import EXAMPLES, enumerable_system, make_run, mean_score, search
from systems import tool

from optimas_jax.core.types import Call, Example, Outcome, Trace
from optimas_jax.core.values import Choice, Grid, Hyperparameters, Models
from optimas_jax.llm.component import LanguageModel
from optimas_jax.search.optimisers.choices import model_values
from optimas_jax.search.optimisers.llmselector import SelectorTask, count_right, module_of, parse_verdict, propose

VALUES = (Choice("a"), Choice("b"), Choice("c"))
MODULE = dataclasses.replace(tool("speaker", ("q",), str), description="Says something.")
NAMES = ("one", "two", "three")
RIGHT = {"a": {"one"}, "b": {"one", "three"}, "c": {"two"}}  # by model, the examples on which the step is right


def traces(values):
    return [
        [
            Trace(
                name,
                0,
                (Call("speaker", {"q": name}, {"said": f"{value.name} of {name}"}),),
                {"end": "x"},
                Outcome.OK,
                0.5,
            )
            for name in NAMES
        ]
        for value in values
    ]


def task(answer, terminal=False, run=traces, style="chat"):
    def ask(requests):
        sent.extend(requests)
        return [answer(request.messages[0].content) for request in requests]

    sent, dropped = [], []
    step = SelectorTask(
        module=MODULE,
        terminal=terminal,
        values=VALUES,
        examples=[Example(name, {"q": name}, {"end": "gold"}, "train") for name in NAMES],
        run=run,
        diagnoser=LanguageModel("m", max_tokens=4, style=style),
        ask=ask,
        seed=0,
        dropped=lambda reason, text: dropped.append((reason, text)),
    )
    return step, sent, dropped


def verdict(text):
    return "Yes." if any(f"{model} of {name}" in text for model, names in RIGHT.items() for name in names) else "no"


@pytest.mark.parametrize("style", ["chat", "text"])
def test_the_model_that_is_right_most_often_is_chosen(style):
    step, requests, dropped = task(verdict, style=style)
    assert count_right(step) == [1, 2, 1] and not dropped
    assert propose(step) == [("llmselector", Choice("b"))]
    text = requests[0].messages[0].content
    assert all(part in text for part in ("Says something.", "a of one", "gold", "Q: one"))
    assert len(requests) == 2 * 9 and {one.role for one in requests} == {"proposer"}


def test_the_model_in_use_wins_ties():
    step, _, _ = task(lambda text: "yes")
    assert count_right(step) == [3, 3, 3] and propose(step) == []


def test_an_answer_that_is_no_verdict_counts_as_not_right_and_is_told():
    step, _, dropped = task(lambda text: ("b of one" in text and "yes") or "Yes, because")
    assert count_right(step) == [0, 1, 0] and len(dropped) == 8
    assert [parse_verdict(text) for text in ("yes", " NO. ", "Yes, I think", "", "yes no")] == [
        True, False, None, None, None
    ]  # fmt: skip


def test_a_module_that_failed_or_was_not_reached_did_not_do_right():
    def run(values):
        failed = Trace("one", 0, (Call("speaker", {"q": "one"}, {}, Outcome.REFUSED),), {}, Outcome.REFUSED, 0.0)
        return [[failed, Trace("two", 0, (), {}, Outcome.CRASHED, 0.0), traces([value])[0][2]] for value in values]

    step, requests, _ = task(lambda text: "yes", run=run)
    assert count_right(step) == [1, 1, 1] and len(requests) == 3


def test_a_terminal_module_is_judged_by_the_metric_alone():
    def run(values):
        return [[dataclasses.replace(t, score=float(v.name == "c")) for t in traces([v])[0]] for v in values]

    step, requests, _ = task(verdict, terminal=True, run=run)
    assert count_right(step) == [0, 0, 3] and not requests
    assert propose(step) == [("llmselector", Choice("c"))]


def test_values_that_name_models():
    assert model_values(Models(("a", "b", "c")), Choice("b")) == list(VALUES)
    grid = Grid({"model": ("m", "n"), "temperature": (0.0, 1.0)})
    current = Hyperparameters({"model": "n", "temperature": 1.0})
    assert model_values(grid, current) == [Hyperparameters({"model": m, "temperature": 1.0}) for m in ("m", "n")]
    assert model_values(Grid({"k": (1, 2)}), Hyperparameters({"k": 1})) == []


def test_the_module_of_a_selector_is_what_asks_the_chosen_model():
    system = enumerable_system(0)
    assert module_of(system, "router") == "tuner" and module_of(system, "tuner") == "tuner"


def test_it_can_be_chosen_as_an_optimiser(tmp_path):
    better = []
    for seed in range(4):
        system = enumerable_system(seed)
        settings = {"score": "global", "proposers": "opro,llmselector", "inputs": len(EXAMPLES)}
        effort = {"seed": seed, "mode": "paper", "engine": None, "iterations": 2, "components": ("router",)}
        run = make_run(system, tmp_path / str(seed), **effort, **settings)
        state = search(run, reward="")
        lines = (tmp_path / str(seed) / "journal.jsonl").read_text().splitlines()
        kinds = {event["kind"] for event in map(json.loads, lines) if event["event"] == "proposal"}
        assert kinds <= {"llmselector"}
        default = system.default_configuration()
        best = max(mean_score(system, default.replace("router", Choice(name))) for name in ("small", "large"))
        assert mean_score(system, state.configuration) == best
        better.append(bool(state.accepted))
    assert any(better)
