"""What choosing among outputs brings, and how well few labels tell proposals apart: measurements after a search."""

from __future__ import annotations

import dataclasses
import io
import runpy
from pathlib import Path

import numpy as np
import pytest
from absl import app
from fakes import ScriptedCompleter
from rich.console import Console
from runs import ROOT
from scripted import answer, scripted_config

from optimas_jax.core.selection import LIKELIHOOD, MAJORITY, RANDOM
from optimas_jax.core.types import StopRun
from optimas_jax.core.values import Choice, Configuration, PerInstance, Prompt
from optimas_jax.loop.measurements import (
    CHOICE_RULES,
    LABELS,
    LOCAL,
    ONE,
    Ranking,
    _differences,
    _known,
    measure_choices,
    measure_ranking,
    simulate,
)
from optimas_jax.loop.stages import check_folders, groups_so_far, last_reward, open_run, run_stages
from optimas_jax.loop.state import Trial
from optimas_jax.report.console import ConsoleProgress
from optimas_jax.rewards.scorer import ScoredGroup
from optimas_jax.search.evidence import Evidence, WeightEvidence, shrunk_weight

QUIET = ConsoleProgress(Console(file=io.StringIO()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has trained a local reward."""
    folder = tmp_path_factory.mktemp("choices")
    for stage in ("collect", "train"):
        run_stages(scripted_config(), folder, stage, QUIET, ScriptedCompleter(answer))
    return folder


def test_every_rule_keeps_one_of_the_same_outputs(folder: Path) -> None:
    with open_run(scripted_config(), folder, QUIET, ScriptedCompleter(answer)) as run:
        host, configuration, name = run.host, run.host.system.default_configuration(), "answer_generator"
        reward, examples = last_reward(run, configuration), host.splits["test"]

        def measure(changed: Configuration) -> dict[str, list[float]]:
            return measure_choices(host, changed, name, reward, examples, samples=4, temperature=1.0)

        scores = measure(configuration)
        assert tuple(scores) == CHOICE_RULES == (ONE, RANDOM, MAJORITY, LIKELIHOOD, LOCAL)
        assert {len(row) for row in scores.values()} == {len(examples)}
        assert sum(scores[RANDOM]) > sum(scores[ONE])  # hot answers are short now and then
        paid = host.ledger.paid_calls
        assert measure(configuration) == scores and host.ledger.paid_calls == paid
        value = configuration[name]
        assert isinstance(value, Prompt)
        chosen = PerInstance((value,), reward, samples=2)  # what it samples is measured
        assert measure(configuration.replace(name, chosen)) == scores
        several = PerInstance((value, Prompt("Answer.")), reward)
        with pytest.raises(StopRun, match="answer_generator chooses among values for every input"):
            measure(configuration.replace(name, several))


def test_the_ranking_of_proposals_from_few_labels(folder: Path) -> None:
    """Demonstrations make the answer generator answer shortly; its instruction changes nothing."""
    with open_run(scripted_config(), folder, QUIET, ScriptedCompleter(answer)) as run:
        configuration = run.host.system.default_configuration()

        def measure(labels: int) -> Ranking | None:
            return measure_ranking(
                run,
                configuration,
                last_reward(run, configuration),
                groups_so_far(run),
                run.host.splits["train"],
                "answer_generator",
                labels=labels,
            )

        row, every, paid = measure(2), measure(1000), run.host.ledger.paid_calls
        assert measure(2) == row and run.host.ledger.paid_calls == paid
    assert row is not None and every is not None and row.proposals > 1
    assert set(row.error) == set(row.regret) == {LABELS, RANDOM, LIKELIHOOD, LOCAL}
    assert row.error[LABELS] > 0 and all(error == pytest.approx(0.0, abs=1e-12) for error in every.error.values())
    assert set(every.regret.values()) == {0.0}


def test_a_component_that_no_proposal_changes_has_no_ranking(folder: Path) -> None:
    with open_run(scripted_config(), folder, QUIET, ScriptedCompleter(answer)) as run:
        configuration, known = run.host.system.default_configuration(), groups_so_far(run)
        examples = run.host.splits["train"][:4]
        reward = last_reward(run, configuration)
        row = measure_ranking(run, configuration, reward, known, examples, "question_rewriter", labels=2)
    assert row is None


def test_differences_are_to_the_current_value_by_hand() -> None:
    trials = {
        ("now", "a"): Trial(Choice("x"), ({"o": 1},), (0.5,)),
        ("new", "a"): Trial(Choice("x"), ({"o": 2},), (1.0,)),
        ("now", "b"): Trial(Choice("x"), ({"o": 1},), (0.0,)),
        ("new", "b"): Trial(Choice("x"), ({"o": 1},), (0.0,)),
        ("now", "c"): Trial(Choice("x"), ({"o": 1},), (1.0,)),  # a demonstration of the new value comes from here
    }
    scores = {key: trial.reward or 0.0 for key, trial in trials.items()}
    changed, gains = _differences(trials, scores, ["now", "new"], ["a", "b", "c"])
    assert changed.tolist() == [[True, False, False]] and gains.tolist() == [[0.5, 0.0, 0.0]]


def test_likelihood_has_its_own_evidence_of_its_weight() -> None:
    rng = np.random.default_rng(0)
    groups = [
        ScoredGroup("c", str(i), row.tolist(), row.tolist(), (-row).tolist(), [0.0] * 3)
        for i, row in enumerate(rng.standard_normal((9, 3)))
    ]
    assert shrunk_weight(_known(LOCAL, groups)) > 0 > shrunk_weight(_known(LIKELIHOOD, groups))
    assert _known(RANDOM, groups) == _known(LABELS, groups) == _known(LOCAL, []) == WeightEvidence()


# Hidden labels


def evidence(correlation: float, seed: int = 0) -> Evidence:
    rng = np.random.default_rng(seed)
    local, noise = rng.standard_normal((2, 6, 32))
    reward = correlation * local + np.sqrt(1 - correlation**2) * noise
    return Evidence(local, reward, np.ones(local.shape, bool))


KNOWN = WeightEvidence(dof=99, inputs=20, sxx=99.0, sxy=89.0, syy=99.0, qxx=500.0, qxy=450.0, qyy=500.0)


def test_a_local_reward_that_knows_halves_the_error_and_one_that_does_not_costs_little() -> None:
    alone = [
        simulate(dataclasses.replace(evidence(0.9, seed), local=np.zeros((6, 32))), WeightEvidence(), 4, 0)
        for seed in range(2)
    ]
    helped = [simulate(evidence(0.9, seed), KNOWN, 4, 0) for seed in range(2)]
    useless = [simulate(evidence(0.0, seed), WeightEvidence(), 4, 0) for seed in range(2)]  # nothing is known of it
    errors = [np.mean([error for error, _ in rows]) for rows in (alone, helped, useless)]
    assert errors[1] < 0.5 * errors[0] and errors[2] < 1.15 * errors[0]
    assert np.mean([regret for _, regret in helped]) < np.mean([regret for _, regret in alone])


def test_with_all_labels_nothing_is_left_to_estimate() -> None:
    error, regret = simulate(evidence(0.5), WeightEvidence(), 32, 0)
    assert error == pytest.approx(0.0, abs=1e-20) and regret == 0.0


# The commands


@pytest.mark.parametrize("command", ["best_of", "ranking"])
def test_a_command_without_a_folder_or_with_none_says_so(tmp_path: Path, command: str, capsys) -> None:
    main = runpy.run_path(str(ROOT / "launch" / f"{command}.py"))["main"]
    with pytest.raises(app.UsageError, match="name at least one run folder"):
        main([command])
    assert main([command, str(tmp_path)]) == 1
    assert "is no run folder: it has no config.json" in capsys.readouterr().err


def test_folders_are_checked_before_any_is_measured(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(StopRun, match="has no finished search with local rewards"):
        check_folders([folder])
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    (tmp_path / "best").mkdir()
    (tmp_path / "optimized.json").write_text("{}")
    check_folders([tmp_path])
    with pytest.raises(StopRun, match="is named twice"):
        check_folders([tmp_path, tmp_path])


def test_a_table_of_several_runs_has_intervals() -> None:
    module = runpy.run_path(str(ROOT / "launch" / "best_of.py"))
    table, rules = module["table"], (*CHOICE_RULES, module["ALLOWED"])
    rows = [{"a": {rule: [0.0, 1.0] if rule == LOCAL else [0.0, 0.5] for rule in rules}} for _ in range(2)]
    assert "| random | 0.250, 0.250 | 0.250 | +0.250 [" in table("a", rows)
    assert "| local reward | 0.500, 0.500 | 0.500 |  |" in table("a", rows)
