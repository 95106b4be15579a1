"""The budget of a whole run: refused below the price of its measurements, never overrun, and with a result above it."""

from __future__ import annotations

import dataclasses
import io
import json
import random
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from fakes import ScriptedCompleter
from rich.console import Console
from runs import comparable
from scripted import answer, scripted_config

from optimas_jax.benchmarks import hotpotqa
from optimas_jax.core.types import Outcome, StopRun
from optimas_jax.core.usage import Usage
from optimas_jax.core.values import Configuration
from optimas_jax.llm.accounts.ledger import Budget, OverBudget
from optimas_jax.llm.base import Completion, CompletionRequest
from optimas_jax.llm.tapes.tape import Tape
from optimas_jax.loop.config import RunConfig
from optimas_jax.loop.evaluate import after_each
from optimas_jax.loop.journal import load_best
from optimas_jax.loop.stages import STAGES, run_stages
from optimas_jax.report.console import ConsoleProgress
from optimas_jax.report.run import report_run
from optimas_jax.search.gate import GateConfig

UNLIMITED = Budget()


def config_with(budget: Budget, evaluate: Mapping[str, Any] | None = None, **search: Any) -> RunConfig:
    """A whole run without training, which accepts changes."""
    base = scripted_config(budget=budget)
    base = dataclasses.replace(base, evaluate=dataclasses.replace(base.evaluate, **(evaluate or {})))
    settings = dataclasses.replace(base.optimize, **{"score": "global", "gate_top": 2, "iterations": 6, **search})
    data = dataclasses.replace(base.data, confirm=8)
    return dataclasses.replace(base, optimize=settings, data=data)


def run(
    workdir: Path, budget: Budget = UNLIMITED, answer=answer, stages=("all",), **search: Any
) -> tuple[list[CompletionRequest], dict[str, Any], list[dict[str, Any]]]:
    """The requests, results and events of a whole run, with its page."""
    model, said = ScriptedCompleter(answer), io.StringIO()
    progress = ConsoleProgress(Console(file=said, width=200))
    for stage in stages:
        run_stages(config_with(budget, **search), workdir, stage, progress, model)
    report_run(workdir, progress)
    events = [json.loads(line) for line in (workdir / "journal.jsonl").read_text().splitlines()]
    return model.requests, json.loads((workdir / "results.json").read_text()), events


def spent(workdir: Path) -> Usage:
    """What all commands in a folder paid."""
    tape = Tape(workdir / "tape.sqlite")
    usage = tape.usage()
    tape.close()
    return usage


def default() -> Configuration:
    config = config_with(Budget())
    return hotpotqa.build(hotpotqa.load(config.data), config.system).default_configuration()


def paid(results: dict[str, Any]) -> dict[str, float]:
    rows = [row for roles in results["ledger"].values() for row in roles.values()]
    return {
        "tokens": sum(row["prompt_tokens"] + row["completion_tokens"] for row in rows),
        "calls": sum(row["paid_calls"] for row in rows),
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], int, int]:
    """Results of a run without a budget, its tokens, and the least budget."""
    folder = tmp_path_factory.mktemp("whole")
    _, results, _ = run(folder / "run")
    with pytest.raises(OverBudget) as refusal:
        run(folder / "refused", Budget(tokens=1))
    least = int(str(refusal.value).split("US dollars, ")[1].split(" tokens")[0].replace(",", ""))
    return results, paid(results)["tokens"], least


def test_a_budget_below_the_measurements_is_refused_before_the_first_request_with_their_price(tmp_path, whole) -> None:
    _, _, least = whole
    model = ScriptedCompleter(answer)
    progress = ConsoleProgress(Console(file=io.StringIO()))
    with pytest.raises(OverBudget, match=rf"may cost .*{least:,} tokens.*default.*final test.*Set it"):
        run_stages(config_with(Budget(tokens=least - 1)), tmp_path, "all", progress, model)
    assert not model.requests


@pytest.mark.parametrize("budgets", [range(12), pytest.param(range(200), marks=pytest.mark.long)])
def test_a_run_with_any_budget_above_the_least_has_a_result_within_it(tmp_path: Path, whole, budgets: range) -> None:
    _, most, least = whole
    shares, unraced = [], 0
    for index in budgets:
        limit = random.Random(index).randint(least, max(most, 2 * least))
        # More iterations than any of these budgets allows: what ends the search is the budget.
        requests, results, events = run(tmp_path / str(index), Budget(tokens=limit), iterations=50)
        used = paid(results)["tokens"]
        assert used <= limit and len(requests) == paid(results)["calls"]
        accepted = [event for event in events if event["event"] == "curve" and event["at"] == "accept"]
        assert all(event["tokens"] <= limit for event in accepted)
        assert (tmp_path / str(index) / "report.html").exists()
        assert results["n"] == 12 and results["confirmed"]["verdict"]
        steps = after_each(default(), results["accepted"])
        assert load_best(tmp_path / str(index) / "best") in steps and len(steps) == 1 + len(accepted)
        lines = (tmp_path / str(index) / "proposals.jsonl").read_text().splitlines()
        unraced += sum("the budget ended" in json.loads(line)["reason"] for line in lines)
        shares.append(used / limit)
    assert statistics.fmean(shares) >= 0.9
    assert unraced  # what proposers wrote and no race has judged is kept, too


@pytest.mark.parametrize("share", [0.0, 0.4, 0.8])
def test_the_same_command_again_pays_nothing_and_says_the_same(tmp_path: Path, whole, share: float) -> None:
    _, most, least = whole
    budget = Budget(tokens=round(least + share * (most - least)))
    _, first, events = run(tmp_path / "run", budget)
    requests, again, same = run(tmp_path / "run", budget)
    assert not requests and comparable(again) == comparable(first) and same == events


def test_stages_one_by_one_within_a_budget_are_the_whole(tmp_path: Path, whole) -> None:
    _, most, least = whole
    budget = Budget(tokens=(most + least) // 2)
    _, first, events = run(tmp_path / "whole", budget)
    _, staged, same = run(tmp_path / "staged", budget, stages=STAGES)
    assert comparable(staged) == comparable(first)
    assert [e["event"] for e in same] == [e["event"] for e in events]


def test_a_higher_budget_goes_on_where_the_lower_one_ended(tmp_path: Path, whole) -> None:
    straight, most, least = whole
    _, low, _ = run(tmp_path / "run", Budget(tokens=least))
    requests, high, _ = run(tmp_path / "run", Budget(tokens=10 * most))
    assert len(low["accepted"]) < len(high["accepted"])
    assert requests and comparable(high) == comparable({**straight, "label": "test-2"})
    assert json.loads((tmp_path / "run" / "evaluations" / "test.json").read_text()) == low  # kept beside the new one


@pytest.mark.parametrize("raised", [1.02, 1.1, 1.3])
@pytest.mark.parametrize("share", [0.2, 0.45, 0.9])
def test_a_slightly_higher_budget_has_a_result_too(tmp_path: Path, whole, share: float, raised: float) -> None:
    """What the first command paid for and the second does not use is spent all the same."""
    _, most, least = whole
    low = round(least + share * (most - least))
    run(tmp_path / "run", Budget(tokens=low))
    for _ in range(2):
        requests, results, _ = run(tmp_path / "run", Budget(tokens=round(raised * low)))
        assert results["n"] == 12 and results["confirmed"]["verdict"]
        assert spent(tmp_path / "run").tokens <= raised * low
    assert not requests


def test_a_lower_budget_than_was_spent_pays_nothing(tmp_path: Path, whole) -> None:
    _, most, least = whole
    run(tmp_path / "run", Budget(tokens=2 * most))
    requests, results, _ = run(tmp_path / "run", Budget(tokens=(most + least) // 2))
    assert not requests and results["n"] == 12
    with pytest.raises(OverBudget, match="what has to be measured may cost"):
        run(tmp_path / "run", Budget(tokens=1))


def test_other_settings_of_the_evaluation_leave_the_search_as_it_was(tmp_path: Path, whole) -> None:
    _, most, least = whole
    budget = Budget(tokens=(most + least) // 2)
    _, first, _ = run(tmp_path / "run", budget)
    _, same, _ = run(tmp_path / "run", budget, evaluate={"repeats": 3})
    repeated = json.loads((tmp_path / "run" / "evaluations" / "test-2.json").read_text())
    assert same == first and repeated["confirmed"] == first["confirmed"] and len(repeated["optimized"]["repeats"]) == 3
    requests, again, _ = run(tmp_path / "run", budget)
    assert not requests and comparable(again) == comparable(first)


def test_the_align_stage_leaves_what_the_measurements_need(tmp_path: Path) -> None:
    def config() -> RunConfig:
        base = config_with(Budget(tokens=100_000), score="local", iterations=2, gate_top=1)
        return dataclasses.replace(base, data=dataclasses.replace(base.data, train=40))

    model, progress = ScriptedCompleter(answer), ConsoleProgress(Console(file=io.StringIO()))
    for stage in ("collect", "train", "align", "align", "optimize"):
        run_stages(config(), tmp_path, stage, progress, model)
    with pytest.raises(StopRun, match=r"config\.budget ends alignment before its first groups"):
        run_stages(config(), tmp_path, "align", progress, model)
    run_stages(config(), tmp_path, "evaluate", progress, model)
    assert json.loads((tmp_path / "results.json").read_text())["n"] == 12
    assert spent(tmp_path).tokens <= 100_000


def test_dollars_are_limited_as_tokens_are(tmp_path: Path) -> None:
    def config(usd: float, model: str = "openai:x") -> RunConfig:
        base = config_with(Budget(usd=usd))
        language_model = dataclasses.replace(base.proposer, model=model)
        system = dataclasses.replace(base.system, language_model=language_model)
        return dataclasses.replace(base, proposer=language_model, system=system, prices="openai:x=1/2")

    progress = ConsoleProgress(Console(file=io.StringIO()))
    with pytest.raises(OverBudget, match=r"may cost 0\.0\d+ US dollars"):
        run_stages(config(1e-6), tmp_path / "refused", "all", progress, ScriptedCompleter(answer))
    for usd in (0.08, 0.12):
        run_stages(config(usd), tmp_path / str(usd), "all", progress, ScriptedCompleter(answer))
        assert json.loads((tmp_path / str(usd) / "results.json").read_text())["n"] == 12
    with pytest.raises(OverBudget, match=r"may cost 0\.0\d+ US dollars"):  # a price that was not known before
        folder, model = tmp_path / "other", ScriptedCompleter(answer)
        with pytest.raises(OverBudget, match="tokens"):
            run_stages(
                dataclasses.replace(config(0), budget=Budget(tokens=1), prices=""), folder, "all", progress, model
            )
        run_stages(config(1e-6), folder, "all", progress, model)
    assert not model.requests


def test_calls_are_limited_as_tokens_are(tmp_path: Path, whole) -> None:
    straight, *_ = whole
    calls = paid(straight)["calls"]
    for share in (0.7, 0.9):
        limit = round(share * calls)
        requests, results, _ = run(tmp_path / str(limit), Budget(calls=limit))
        assert 0.85 * limit <= len(requests) <= limit and results["n"] == 12


def test_a_final_test_that_costs_more_than_expected_is_measured_on_the_examples_that_fit(tmp_path: Path) -> None:
    """Prompts are counted at half of their worst case until the search ends, and in full then."""
    searching = True

    def priced(request: CompletionRequest) -> Completion:
        most = request.most()
        read = most.prompt_tokens // 2 if searching else most.prompt_tokens
        return Completion(answer(request), Outcome.OK, read, 1)

    model, said = ScriptedCompleter(priced), io.StringIO()
    progress = ConsoleProgress(Console(file=said, width=300))
    budget = Budget(tokens=55_000)
    for _ in range(2):
        for stage in STAGES:
            run_stages(config_with(budget, inputs=12), tmp_path, stage, progress, model)
            searching = searching and stage != "optimize"
        results = json.loads((tmp_path / "results.json").read_text())
        assert 0 < results["n"] < 12 and len(results["baseline"]["scores"]) == results["n"]
        assert f"test examples, 1 run each: {results['n']} of 12 examples" in said.getvalue()
        assert paid(results)["tokens"] <= budget.tokens
        asked = len(model.requests)
    assert asked == len(model.requests)


def test_requests_at_their_worst_case_leave_a_result_within_the_least_budget(tmp_path: Path, whole) -> None:
    """The runs that tell what a run costs leave less than that many cost."""

    def dear(request: CompletionRequest) -> Completion:
        most = request.most()
        return Completion(answer(request), Outcome.OK, most.prompt_tokens, most.completion_tokens)

    _, _, least = whole
    for more in (0, 2_000, 20_000):
        workdir = tmp_path / str(more)
        _, results, _ = run(workdir, Budget(tokens=least + more), dear)
        assert results["n"] and results["confirmed"]["verdict"] and (workdir / "best").is_dir()
        assert paid(results)["tokens"] <= least + more


def test_a_limit_of_the_search_below_the_first_validation_is_refused_before_the_first_request(tmp_path: Path) -> None:
    model, progress = ScriptedCompleter(answer), ConsoleProgress(Console(file=io.StringIO()))
    with pytest.raises(OverBudget, match=r"max_tokens is 500, and the validation of the default alone may use \d,\d+"):
        run_stages(config_with(UNLIMITED, max_tokens=500), tmp_path, "all", progress, model)
    assert not model.requests


def test_confirmation_and_final_test_are_no_part_of_the_searchs_own_limit(tmp_path: Path) -> None:
    _, free, _ = run(tmp_path / "free", max_tokens=60_000)
    _, limited, _ = run(tmp_path / "limited", Budget(tokens=10**7), max_tokens=60_000)
    assert free["accepted"] and limited["accepted"]


def test_a_search_that_was_cut_writes_nothing_more_when_it_is_repeated(tmp_path: Path, whole) -> None:
    """Although a proposer's answers were rejected in the part that was cut."""
    _, most, least = whole

    def useless(request: CompletionRequest) -> str:
        return "" if request.role == "proposer" else answer(request)

    cut = 0
    for share in (0.3, 0.5, 0.7, 0.9):
        budget, workdir = Budget(tokens=round(least + share * (most - least))), tmp_path / str(share)
        _, _, first = run(workdir, budget, useless, iterations=12)
        _, _, again = run(workdir, budget, useless, iterations=12)
        assert again == first
        cut += any(event["event"] == "out_of_budget" for event in first)
    assert cut


def test_a_gate_that_nothing_can_pass_is_refused_before_the_first_request(tmp_path: Path) -> None:
    config = config_with(UNLIMITED, gate=GateConfig(level=0.05), gate_examples=4)
    model, progress = ScriptedCompleter(answer), ConsoleProgress(Console(file=io.StringIO()))
    with pytest.raises(ValueError, match="needs at least 5 validation examples, got 4"):
        run_stages(config, tmp_path, "all", progress, model)
    assert not model.requests and not tmp_path.joinpath("config.json").exists()
