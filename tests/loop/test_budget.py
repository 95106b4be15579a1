"""Blocks of a search under a hard limit: what is cut, what is recorded of it, and the same command again."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from enumerable import ExactRewards, enumerable_system, make_run
from fakes import ScriptedCompleter, request

from optimas_jax.core.running.execution import Job, gather, run_many
from optimas_jax.core.types import Outcome
from optimas_jax.core.usage import Allowance, Limit, OutOfBudget, Usage
from optimas_jax.llm.base import Completion, CompletionRequest
from optimas_jax.loop.budget import (
    CUTS,
    block,
    cost_so_far,
    costs_from,
    expected_cost,
    fits,
    price,
    run_limit,
    search_limit,
)
from optimas_jax.loop.context import Run

COST = 20  # tokens of every answer; at most 77 are reserved


def ask(run: Run, texts: Sequence[str]) -> list[Completion]:
    calls = [functools.partial(run.host.completer.complete, request(text, role="writer")) for text in texts]
    return gather(calls, concurrency=4)


def a_run(workdir: Path, limit: int) -> tuple[Run, list[CompletionRequest]]:
    system = enumerable_system(0)
    fake = ScriptedCompleter(lambda request: Completion("ape", Outcome.OK, COST - 8, 8))
    engine = ExactRewards(system, workdir)
    return make_run(
        system.using(fake), workdir, seed=0, mode="paper", engine=engine, iterations=1, max_tokens=limit
    ), fake.requests


def at_most(run: Run, tokens: float) -> AbstractContextManager[Allowance]:
    return run.host.ledger.limit(Limit(tokens=tokens))


def search(run: Run) -> list[Any]:
    """Blocks of growing size, until one is cut twice; what each one did."""
    log: list[Any] = []
    with run.host.ledger.phase("optimize"), search_limit(run.host, "optimize"):
        for number in range(12):
            try:
                with block(run.host, f"{number}/answers"), at_most(run, math.inf if number % 3 else 200):
                    ask(run, [f"{number}-{i}" for i in range(number + 1)])
                    log.append(number)
            except OutOfBudget:
                log.append("cut")
            log.append(
                (cost_so_far(run.host), fits(run.host, Usage(prompt_tokens=100)), run.host.ledger.usage("optimize"))
            )
    return log


@pytest.mark.parametrize("limit", [300, 500, 1000, 5000])
def test_the_same_command_again_is_cut_at_the_same_places_although_the_tape_answers_for_less(
    tmp_path: Path, limit: int
) -> None:
    run, requests = a_run(tmp_path, limit)
    first = search(run)
    run.tape.close()
    run.host.folder.close()
    used = first[-1][0].tokens
    assert "cut" in first and used <= limit and (limit > 2000 or used > limit - 77)
    answered = len(requests)
    run, again = a_run(tmp_path, limit)
    assert search(run) == first and not again and answered * COST == used
    run.tape.close()
    cuts = json.loads((tmp_path / CUTS).read_text())
    assert len(cuts) == first.count("cut") and all(name.startswith(f"{limit} of all:") for name in cuts)


def test_what_a_block_ran_before_it_was_cut_counts_again(tmp_path: Path) -> None:
    used = []
    for _ in range(2):
        run, requests = a_run(tmp_path, 300)
        jobs = [Job(run.host.system.default_configuration(), example, 0) for example in run.host.splits["train"]]
        with run.host.ledger.phase("optimize"), search_limit(run.host, "optimize"):
            with pytest.raises(OutOfBudget), block(run.host, "runs"), at_most(run, 100):
                run_many(run.host.system, jobs, concurrency=1)
            used.append(cost_so_far(run.host))
        run.tape.close()
        run.host.folder.close()
    assert used[0] == used[1] and used[0].system_runs >= 2 and used[0].component_calls >= 4 and not requests


def test_an_inner_block_that_is_cut_leaves_the_rest_to_the_outer_one(tmp_path: Path) -> None:
    for _ in range(2):
        run, _ = a_run(tmp_path, 1000)
        with search_limit(run.host, "optimize"):
            with block(run.host, "outer"), at_most(run, 500):
                with pytest.raises(OutOfBudget), block(run.host, "inner"), at_most(run, 100):
                    ask(run, "abcdefgh")
                assert run.host.ledger.left.tokens == 500 - 40
                ask(run, "ijkl")
            assert run.host.ledger.left.tokens == 1000 - 120 and cost_so_far(run.host).calls == 6
        run.tape.close()
        run.host.folder.close()
    assert [*json.loads((tmp_path / CUTS).read_text())] == ["1000 of all:inner"]


def test_collecting_and_optimising_share_one_limit(tmp_path: Path) -> None:
    run, _ = a_run(tmp_path, 200)
    with run.host.ledger.phase("collect"), run_limit(run.host, "collect"), search_limit(run.host, "collect"):
        ask(run, "abc")
    with run.host.ledger.phase("optimize"), search_limit(run.host):
        assert run.host.ledger.left.tokens == 140 and cost_so_far(run.host) == Usage(3, 3 * (COST - 8), 24)
        ask(run, "abc")  # each stage counts what it asks
        assert run.host.ledger.left.tokens == 80
    run.tape.close()
    unlimited, _ = a_run(tmp_path / "unlimited", 0)
    with search_limit(unlimited.host, "optimize"), block(unlimited.host, "all"):
        ask(unlimited, "abcdefgh")
        assert fits(unlimited.host, Usage(prompt_tokens=10**12)) and cost_so_far(unlimited.host).tokens == 8 * COST
    unlimited.tape.close()


def test_an_expected_cost_is_that_of_runs_so_far(tmp_path: Path) -> None:
    run, _ = a_run(tmp_path, 1000)
    jobs = [Job(run.host.system.default_configuration(), example, 0) for example in run.host.splits["train"]]
    with run.host.ledger.phase("optimize"), search_limit(run.host, "optimize"):
        assert expected_cost(run.host, "", runs=100) == Usage()
        run_many(run.host.system, jobs, concurrency=4)
        assert costs_from(run.host) == {"writer": COST, "router": 0, "tuner": 0}
        assert expected_cost(run.host, "", runs=10) == expected_cost(run.host, "writer", runs=10, calls=10)
        assert expected_cost(run.host, "", runs=10) == Usage(10, 10 * (COST - 8), 80)
        assert (
            expected_cost(run.host, "writer", runs=0, calls=7).tokens == 7 * COST
            and expected_cost(run.host, "router", runs=9, calls=9) == Usage()
        )
        run.host.ledger.replay([("metric", "a judge's request", Usage(calls=1, prompt_tokens=5))])
        assert expected_cost(run.host, "router", runs=2, calls=2).tokens == 10
        assert expected_cost(run.host, "", runs=2).tokens == 2 * COST + 10
    run.tape.close()


def test_components_behind_one_that_fails_on_a_made_up_answer_are_priced(tmp_path: Path) -> None:
    async def ask_again(fields: Any, value: Any, context: Any) -> dict[str, str]:
        await context.completer.complete(request("x" * 200, role="tuner"))
        return {"c": "ape"}

    system = enumerable_system(0)  # its router knows four words alone
    last = dataclasses.replace(system.by_name["tuner"], run=ask_again)
    system = dataclasses.replace(system, components=(*system.components[:2], last))
    run = make_run(system, tmp_path, seed=0, mode="paper", engine=ExactRewards(system, tmp_path), iterations=1)
    found = price(run.host, run.config)
    assert found.baseline.calls == 2 * 3 and found.baseline.tokens > 3 * 200
    assert (found.baseline_runs, found.confirm_runs, found.test_runs) == (3, 0, 3)
    assert found.final == found.baseline.times(2) and found.largest.calls == 1
    assert found == price(run.host, run.config)  # as the folder keeps it
    run.tape.close()
