"""Objectives on the choice of a model, where every point is known by hand: what is chosen under weights and limits,
what the Pareto set holds, that weights of 0 change nothing, and that a repetition decides the same."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import pytest
from fakes import ScriptedCompleter
from model_choice import COSTS, SCORES, choice_config, names, routed, run_choice
from rich.console import Console
from scripted import answer, scripted_config

from optimas_jax.core.cost import Cost
from optimas_jax.core.objective import Objective
from optimas_jax.core.schema import ConfigError
from optimas_jax.core.types import Outcome, StopRun
from optimas_jax.llm.base import Completion
from optimas_jax.llm.component import LanguageModel
from optimas_jax.loop.config import OptimizeConfig, overridden
from optimas_jax.loop.journal import FolderError, RunFolder
from optimas_jax.loop.objective import check_measurable, check_objective
from optimas_jax.loop.stages import run_stages
from optimas_jax.report.console import ConsoleProgress
from optimas_jax.report.run import report_run
from optimas_jax.result import open_run


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def point(results: dict, number: int) -> tuple[float, float, float, float]:
    row = results["pareto"][number]
    return row["score"]["mean"], row["dollars"]["mean"], row["tokens"]["mean"], row["seconds"]["mean"]


def by_hand(model: str) -> tuple[float, float, float, float]:
    cost = COSTS[model]
    return SCORES[model], pytest.approx(cost.usd), cost.tokens, pytest.approx(cost.seconds)


def test_the_pareto_set_holds_the_points_computed_by_hand(tmp_path: Path) -> None:
    _, results = run_choice(tmp_path / "run")
    assert names(results) == ["large"]
    assert [point(results, number) for number in (0, 1)] == [by_hand("small"), by_hand("large")]
    rows = results["pareto"]
    assert [row["dominated"] for row in rows] == [False, False] and [row["kept"] for row in rows] == [False, True]
    assert rows[1]["score"]["ci95"] == [1.0, 1.0] and rows[0]["score"]["ci95"][0] < 0.5 < rows[0]["score"]["ci95"][1]
    assert "objective" not in results


@pytest.mark.parametrize(
    ("weights", "chosen"),
    [  # small .50, medium .75, large 1.00 before costs
        ({"tokens": 0.5}, ["large"]),  # .490, .725, .80
        ({"tokens": 1.0}, ["medium"]),  # .480, .700, .60
        ({"tokens": 10.0}, []),  # .300, .250, -3
        ({"dollars": 10.0}, ["medium"]),  # .490, .710, .70
        ({"dollars": 5.0}, ["large"]),  # .495, .730, .85
        ({"seconds": 0.1}, ["medium"]),  # .450, .650, .60
        ({"seconds": 0.05, "dollars": 4.0}, ["medium"]),  # .471, .684, .68
    ],
)
def test_with_a_weight_on_cost_the_chosen_point_moves_as_computed(tmp_path: Path, weights, chosen) -> None:
    _, results = run_choice(tmp_path / "run", **weights)
    assert names(results) == chosen
    objective = Objective(**weights)
    rewards = {name: SCORES[name] - objective.penalty(COSTS[name]) for name in COSTS}
    last = chosen[-1] if chosen else "small"
    assert last == max(rewards, key=rewards.get)
    assert results["pareto"][-1]["reward"]["mean"] == pytest.approx(rewards[last])
    assert results["objective"]["gain"]["mean"] == pytest.approx(rewards[last] - rewards["small"])
    assert results["gain"]["mean"] == pytest.approx(SCORES[last] - SCORES["small"])  # of the metric, unchanged
    for change in results["accepted"]:
        assert change["val_gain"] == pytest.approx(rewards[last] - rewards["small"])
        assert change["val_score_gain"] == pytest.approx(SCORES[last] - SCORES["small"])
        assert change["val_score"] == SCORES[last]


@pytest.mark.parametrize(
    ("limit", "measure"),
    [({"max_tokens": 100}, "tokens"), ({"max_dollars": 0.02}, "dollars"), ({"max_seconds": 2}, "seconds")],
)
def test_a_limit_refuses_at_the_gate_by_its_name(tmp_path: Path, limit, measure) -> None:
    _, results = run_choice(tmp_path / "run", **limit)
    assert names(results) == ["medium"]
    [refused] = [row for row in lines_of(tmp_path / "run/proposals.jsonl") if row["verdict"] == "refused"][:1]
    assert f"exceeds max_{measure}: " in refused["reason"] and "the limit is" in refused["reason"]
    events = [event for event in lines_of(tmp_path / "run/journal.jsonl") if event["event"] == "gate"]
    assert events[0]["exceeds"] == [measure] and not events[0]["accepted"]
    assert not events[1]["exceeds"] and events[1]["accepted"]


def test_a_start_above_a_limit_is_told_of(tmp_path: Path) -> None:
    log = io.StringIO()
    _, results = run_choice(tmp_path / "run", progress=ConsoleProgress(Console(file=log, width=1000)), max_tokens=10)
    assert not results["accepted"] and results["pareto"][0]["exceeds"] == ["tokens"]
    assert "the start exceeds max_tokens: 20 tokens a run [20, 20], and the limit is 10" in log.getvalue()


def test_weights_of_zero_change_nothing(tmp_path: Path) -> None:
    """Byte for byte, whatever runs cost."""
    free = routed(dict.fromkeys(COSTS, Cost(4)))
    _, costly = run_choice(tmp_path / "costly", tokens=0.0, dollars=0.0, seconds=0.0)
    _, cheap = run_choice(tmp_path / "cheap", system=free)
    files = [(tmp_path / name / "proposals.jsonl").read_bytes() for name in ("costly", "cheap")]
    files += [(tmp_path / name / "evaluations/test.jsonl").read_bytes() for name in ("costly", "cheap")]
    assert files[0] == files[1] and files[2] == files[3]
    paid = ("ledger", "spent", "wall_seconds", "peak_rss_mb", "pareto")
    assert {key: costly[key] for key in costly if key not in paid} == {k: cheap[k] for k in cheap if k not in paid}


def test_a_repetition_pays_nothing_and_decides_the_same(tmp_path: Path) -> None:
    weights = {"tokens": 1.0, "dollars": 0.1, "seconds": 0.01}
    _, first = run_choice(tmp_path / "run", **weights)
    for name in ("optimized.json", "results.json", "evaluations/test.json", "used.json"):
        (tmp_path / "run" / name).unlink()
    model, again = run_choice(tmp_path / "run", **weights)
    assert not model.requests
    assert again["pareto"] == first["pareto"] and again["objective"] == first["objective"]
    assert again["accepted"] == first["accepted"]


def test_prices_that_decide_stay_as_they_were(tmp_path: Path) -> None:
    run_choice(tmp_path / "run", dollars=1.0)
    other = overridden(choice_config(dollars=1.0), {"prices": "openai:x=1/1"})
    with pytest.raises(FolderError, match=r"config\.prices: '' -> 'openai:x=1/1'"):
        RunFolder(tmp_path / "run", other)
    run_choice(tmp_path / "free")
    RunFolder(tmp_path / "free", overridden(choice_config(), {"prices": "openai:x=1/1"})).close()


def test_tables_picture_and_frame(tmp_path: Path) -> None:
    run_choice(tmp_path / "run", tokens=1.0, max_tokens=300)
    log = io.StringIO()
    report_run(tmp_path / "run", ConsoleProgress(Console(file=log, width=200)))
    assert "Configurations that passed the gate" in log.getvalue() and "1: router" in log.getvalue()
    assert "gain of the objective" in log.getvalue()
    page, picture = ((tmp_path / "run" / name).read_text() for name in ("report.html", "pareto.svg"))
    assert picture.startswith("<svg") and picture.count("<circle") == 2 * 3
    assert page.partition('class="pareto"')[2].partition("</svg>")[0].count("<circle") == 2 * 3
    frame = open_run(tmp_path / "run").pareto
    assert list(frame["tokens"]) == [20, 50] and list(frame["kept"]) == [False, True]
    assert list(frame["score_low"] <= frame["score"]) == [True, True]


def test_an_answer_with_the_same_words_for_less_is_a_proposal(tmp_path: Path) -> None:
    """Values whose answers are alike differ by what they cost: the cheaper one is accepted."""
    same = {"small": Cost(400, 0.0, 0.0), "medium": Cost(50, 0.0, 0.0), "large": Cost(60, 0.0, 0.0)}
    system = routed(same)
    everything_right = dataclasses.replace(system, metric=lambda outputs, gold: 1.0)
    _, results = run_choice(tmp_path / "run", system=everything_right, tokens=1.0)
    assert names(results) == ["medium"]
    assert [row["dominated"] for row in results["pareto"]] == [True, False]


# --- what cannot be measured


def test_an_unknown_component_and_clients_of_ones_own_are_refused() -> None:
    system = routed()
    with pytest.raises(ConfigError, match="prompt_tokens_of names 'nobody'; components are router, writer"):
        check_objective(choice_config(prompt_tokens_of="nobody=5"), system)
    own = dataclasses.replace(system.by_name["writer"], metered=False)
    own_system = dataclasses.replace(system, components=(system.by_name["router"], own))
    for setting in ("tokens", "max_dollars"):
        with pytest.raises(ConfigError, match=rf"objective\.{setting} is 2, and writer may ask .* set {setting} = 0"):
            check_objective(choice_config(**{setting: 2}), own_system)
    check_objective(choice_config(seconds=1.0, max_prompt_tokens=100), own_system)


def served(*models: str):
    system = routed()
    writers = [
        llm(system, name=f"writer{index}", model=model, output=f"a{index}") for index, model in enumerate(models)
    ]
    return dataclasses.replace(system, components=tuple(writers), output_fields=("a0",))


def llm(system, name: str, model: str, output: str):
    from optimas_jax.llm.component import llm_component

    return llm_component(
        name=name,
        description="Answer.",
        inputs=("q",),
        output=output,
        instruction="Answer.",
        language_model=LanguageModel(model),
    )


@pytest.mark.parametrize(
    ("objective", "models", "message"),
    [
        ({"dollars": 1.0}, ["openai:nobody-knows"], r"no price of openai:nobody-knows is known: set config\.prices to"),
        ({"max_dollars": 1.0}, ["openai:nobody-knows"], r"objective\.max_dollars is 1, and no price of"),
        ({"dollars": 1.0}, ["random:0"], "all models are local, which cost none: set tokens in their place"),
        ({"seconds": 0.1}, ["openai:gpt-4o-mini", "random:0"], "random:0 answers in a batch that all runs share"),
        ({"max_seconds": 3}, ["random:0"], "the seconds of one run are no measurement. Set max_seconds = 0"),
    ],
)
def test_what_no_model_tells_is_refused_before_the_first_request(objective, models, message) -> None:
    with pytest.raises(ConfigError, match=message):
        check_measurable(choice_config(**objective), served(*models))


def test_what_can_be_measured_is_not_refused() -> None:
    check_measurable(choice_config(dollars=1.0, seconds=1.0, tokens=1.0), served("openai:gpt-4o-mini"))
    check_measurable(choice_config(tokens=1.0, max_tokens=9), served("random:0"))
    check_measurable(choice_config(dollars=1.0), served("random:0", "openai:gpt-4o-mini"))


def test_a_server_that_tells_no_usage_stops_the_run_with_what_to_set(tmp_path: Path) -> None:
    system = routed()
    silent = ScriptedCompleter(lambda request: Completion("right 1", Outcome.OK, 9, 9, estimated=True))
    mute = dataclasses.replace(system, completer=silent)
    with pytest.raises(StopRun, match=r"objective\.tokens is 1, and the server of small does not say how many tokens"):
        run_choice(tmp_path / "run", system=mute, tokens=1.0)
    assert silent.requests
    run_choice(tmp_path / "other", system=mute)  # nobody asks for it


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokens": -1.0}, r"objective\.tokens is -1\.0, expected at least 0"),
        ({"dollars": float("nan")}, r"objective\.dollars is nan"),
        ({"max_seconds": float("inf")}, r"objective\.max_seconds is inf, expected a finite number"),
        ({"tokens": "much"}, r"objective\.tokens is 'much', expected float"),
        ({"max_prompt_tokens": 2.5}, r"objective\.max_prompt_tokens is 2\.5, expected int"),
        ({"prompt_tokens_of": "draft"}, "expected COMPONENT=TOKENS"),
        ({"prompt_tokens_of": "draft=0"}, "'draft=0', expected COMPONENT=TOKENS"),
        ({"prompt_tokens_of": "draft=1, draft=2"}, "every component once"),
        ({"token": 1.0}, "objective has no field token"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message) -> None:
    with pytest.raises(ConfigError, match=message):
        choice_config(**settings)


# --- caps on prompts


def size(request) -> int:
    return request.most().prompt_tokens


def capped_run(tmp_path: Path, cap: str, **changes):
    optimize = OptimizeConfig(
        components="answer_generator", iterations=2, inputs=6, instructions=2, demo_sets=2, demo_size=2, gate_top=2
    )
    config = scripted_config()
    config = dataclasses.replace(config, optimize=dataclasses.replace(optimize, score="off", labels=2))
    config = overridden(config, {"optimize.objective.prompt_tokens_of": cap, "offline.groups": 0, **changes})
    model = ScriptedCompleter(answer)
    run_stages(config, tmp_path / "run", "all", ConsoleProgress(quiet=True), model)
    return model, lines_of(tmp_path / "run/proposals.jsonl")


def test_a_cap_on_prompts_is_never_exceeded(tmp_path: Path) -> None:
    free, proposals = capped_run(tmp_path / "free", "")
    sizes = sorted(size(one) for one in free.requests if one.role == "answer_generator")
    first = [one for one in free.requests if one.role == "answer_generator" and shown(one).count("\n\n") == 1]
    default = max(map(size, first))
    assert any("answer_generator" in row["id"] and "demos" in row["optimiser"] for row in proposals)
    assert sizes[-1] > default  # demonstrations make prompts longer
    model, proposals = capped_run(tmp_path / "capped", f"answer_generator={default}")
    assert max(size(one) for one in model.requests if one.role == "answer_generator") <= default
    dropped = [row for row in proposals if "and its cap is" in row["reason"]]
    assert dropped and all(row["verdict"] == "not tried" and row["race"] is None for row in dropped)
    assert {"demos"} <= {row["optimiser"] for row in dropped}


def shown(request) -> str:
    return request.messages[-1].content


def test_a_first_prompt_above_its_cap_is_refused_before_anything_is_paid(tmp_path: Path) -> None:
    model = ScriptedCompleter(answer)
    config = overridden(scripted_config(), {"optimize.objective.prompt_tokens_of": "question_rewriter=20"})
    with pytest.raises(ConfigError, match=r"the prompt of question_rewriter has up to \d+ tokens .* its cap is 20"):
        run_stages(config, tmp_path / "run", "all", ConsoleProgress(quiet=True), model)
    assert not model.requests


def test_a_longer_request_is_not_sent_and_its_call_fails(tmp_path: Path) -> None:
    """Inputs of later components are not known beforehand."""
    model, _ = capped_run(tmp_path, "hint_generator=100")
    assert not [one for one in model.requests if one.role == "hint_generator"]
    rows = lines_of(tmp_path / "run/evaluations/test.jsonl")
    assert {run["outcome"] for row in rows for run in row["before"]["runs"]} == {"over_budget"}


def test_plain_data_of_an_objective_round_trips() -> None:
    config = choice_config(tokens=0.01, prompt_tokens_of="writer=300")
    assert config.optimize.objective == Objective(tokens=0.01, prompt_tokens_of="writer=300")
    assert config.optimize.objective.cap("writer") == 300 and config.optimize.objective.cap("router") == 0
    assert LanguageModel("x")  # the rest of the configuration is as it was
