"""The refresh stage: labels under the configuration that a search ended with, and local rewards that learn from it."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import pytest
from fakes import ScriptedCompleter
from rich.console import Console
from scripted import answer, scripted_config

from optimas_jax.core.types import StopRun
from optimas_jax.loop.config import AlignConfig, RefreshConfig
from optimas_jax.loop.journal import load_best
from optimas_jax.loop.stages import MissingStage, run_stages
from optimas_jax.report.console import ConsoleProgress
from optimas_jax.rewards.data import load_groups
from optimas_jax.rewards.pairs import is_informative
from optimas_jax.rewards.split import part_of

QUIET = ConsoleProgress(Console(file=io.StringIO()))


@pytest.mark.parametrize("heads", [pytest.param("trained", marks=pytest.mark.long), "fitted"])
def test_labels_under_the_final_configuration_make_another_local_reward(tmp_path: Path, heads: str) -> None:
    base = scripted_config(align=AlignConfig(inputs=2), refresh=RefreshConfig(tokens=400_000))
    config = dataclasses.replace(
        base, data=dataclasses.replace(base.data, train=32), reward=dataclasses.replace(base.reward, heads=heads)
    )
    folder, requests = tmp_path / "run", []
    for stage in ("collect", "train", "optimize", "refresh", "refresh", "align"):
        model = ScriptedCompleter(answer)
        run_stages(config, folder, stage, QUIET, model)
        requests.append(len(model.requests))
    assert requests[3] > 0 == requests[4]
    refreshed = json.loads((folder / "refreshed.json").read_text())
    search = json.loads((folder / "optimized.json").read_text())
    assert refreshed["configuration"] == load_best(folder / "best").to_json()
    assert json.loads((folder / "alignment.json").read_text())["reward"] == refreshed["name"]
    groups = load_groups(folder / "groups" / "refreshed")
    assert groups and {group.configuration for group in groups} == {load_best(folder / "best").digest}
    assert not any(part_of(group.example_id, config.offline.shares) == "report" for group in groups)
    shares, threshold = config.offline.shares, config.reward.loss.threshold
    learned = [g for g in groups if is_informative(g.rewards, threshold) and part_of(g.example_id, shares) == "train"]
    if heads == "trained":  # fitted heads also learn from what the search had no cause to train on
        assert (refreshed["name"] != search["reward"]) == bool(learned)
    used = json.loads((folder / "used.json").read_text())
    assert 0 < used["refresh"]["tokens"] <= 400_000
    few = dataclasses.replace(config, refresh=RefreshConfig(tokens=10))
    with pytest.raises(StopRun, match=r"config\.refresh\.tokens = 10 .* ends before the first groups"):
        run_stages(few, folder, "refresh", QUIET, ScriptedCompleter(answer))
    assert json.loads((folder / "refreshed.json").read_text()) == refreshed
    one, model = RefreshConfig(tokens=100_000, components="answer_generator", samples=5), ScriptedCompleter(answer)
    run_stages(dataclasses.replace(config, refresh=one), folder, "refresh", QUIET, model)
    more = load_groups(folder / "groups" / "refreshed") or []
    others = [[g for g in of_stage if g.component != "answer_generator"] for of_stage in (groups, more)]
    assert model.requests and others[0] == others[1] and len(more) >= len(groups)  # nothing is lost
    wrong = dataclasses.replace(config, refresh=RefreshConfig(components="answers"))
    with pytest.raises(
        StopRun, match=r"config\.refresh\.components names 'answers'; tuned are context_retriever, answer"
    ):
        run_stages(wrong, folder, "refresh", QUIET, ScriptedCompleter(answer))


def test_without_a_search_it_says_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(MissingStage, match="--stage=optimize"):
        run_stages(scripted_config(), tmp_path / "run", "refresh", QUIET, ScriptedCompleter(answer))
