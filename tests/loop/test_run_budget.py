"""The budget of a whole run: refused below the price of its measurements, never overrun, and with a result above it."""

from __future__ import annotations

import dataclasses
import io
import json
import random
import statistics
from pathlib import Path
from typing import Any

import pytest
from fakes import ScriptedCompleter
from rich.console import Console
from scripted import answer, scripted_config

from optimas_jax.benchmarks import hotpotqa
from optimas_jax.core.types import Outcome
from optimas_jax.core.values import Configuration
from optimas_jax.llm.base import Completion, CompletionRequest
from optimas_jax.llm.ledger import Budget, OverBudget
from optimas_jax.loop.config import RunConfig
from optimas_jax.loop.evaluate import after_each
from optimas_jax.loop.journal import load_best
from optimas_jax.loop.stages import STAGES, run_stages
from optimas_jax.report.console import ConsoleProgress
from optimas_jax.report.run import report_run

UNLIMITED = Budget()


def config_with(budget: Budget, **search: Any) -> RunConfig:
    """A whole run without training, which accepts changes."""
    base = scripted_config(budget=budget)
    settings = dataclasses.replace(base.optimize, score="global", gate_top=2, iterations=6, **search)
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


def default() -> Configuration:
    config = config_with(Budget())
    return hotpotqa.build(hotpotqa.load(config.data), config.system).default_configuration()


def paid(results: dict[str, Any]) -> dict[str, float]:
    rows = [row for roles in results["ledger"].values() for row in roles.values()]
    return {
        "tokens": sum(row["prompt_tokens"] + row["completion_tokens"] for row in rows),
        "calls": sum(row["paid_calls"] for row in rows),
    }


def comparable(results: dict[str, Any]) -> dict[str, Any]:
    free = ("ledger", "paid_calls", "wall_seconds", "peak_rss_mb")
    return {key: value for key, value in results.items() if key not in free}


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
    shares = []
    for index in budgets:
        limit = random.Random(index).randint(least, max(most, 2 * least))
        requests, results, events = run(tmp_path / str(index), Budget(tokens=limit))
        used = paid(results)["tokens"]
        assert used <= limit and len(requests) == paid(results)["calls"]
        accepted = [event for event in events if event["event"] == "curve" and event["at"] == "accept"]
        assert all(event["tokens"] <= limit for event in accepted)
        assert (tmp_path / str(index) / "report.html").exists()
        assert results["n"] == 12 and results["confirmed"]["verdict"]
        steps = after_each(default(), results["accepted"])
        assert load_best(tmp_path / str(index) / "best") in steps and len(steps) == 1 + len(accepted)
        shares.append(used / min(limit, most))
    assert statistics.fmean(shares) >= 0.9


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
    assert requests and comparable(high) == comparable(straight)


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
    budget = Budget(tokens=60_000)
    for _ in range(2):
        for stage in STAGES:
            run_stages(config_with(budget, inputs=12), tmp_path, stage, progress, model)
            searching = searching and stage != "optimize"
        results = json.loads((tmp_path / "results.json").read_text())
        assert 0 < results["n"] < 12 and len(results["baseline"]["scores"]) == results["n"]
        assert f"final test on test, 1 runs each: {results['n']} of 12 examples" in said.getvalue()
        assert paid(results)["tokens"] <= budget.tokens
        asked = len(model.requests)
    assert asked == len(model.requests)
