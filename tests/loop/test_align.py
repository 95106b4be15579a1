"""The align stage: fresh inputs that no local reward was trained on, under the configuration that was found."""

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
from optimas_jax.loop.config import AlignConfig
from optimas_jax.loop.stages import MissingStage, run_stages
from optimas_jax.report.console import ConsoleProgress
from optimas_jax.report.run import report_alignment
from optimas_jax.rewards.split import part_of

QUIET = ConsoleProgress(Console(file=io.StringIO()))


def test_alignment_is_measured_on_report_inputs_with_a_ceiling(tmp_path: Path) -> None:
    base = scripted_config(align=AlignConfig(inputs=3))
    config = dataclasses.replace(base, data=dataclasses.replace(base.data, train=32))
    for stage in ("collect", "train", "align"):
        model = ScriptedCompleter(answer)
        run_stages(config, tmp_path / "run", stage, QUIET, model)
    saved = json.loads((tmp_path / "run" / "alignment.json").read_text())
    rows = saved["alignment"]
    assert saved["reward"] and set(rows) <= {"context_retriever", "answer_generator"} and "answer_generator" in rows
    for row in rows.values():
        assert 0 <= row["pair_accuracy"] <= 1 and row["n_pairs"] >= row["n_inputs"] >= 1
        assert set(row["controls"]) == {"shorter", "loglik", "majority"}
        assert row["ceiling"] == 1.0  # the scripted model answers the same every time
    report = sum(part_of(f"train-{index:04d}", config.offline.shares) == "report" for index in range(32))
    assert all(row["n_inputs"] <= report for row in rows.values())
    report_alignment(tmp_path / "run", QUIET)


@pytest.mark.long
def test_the_same_command_again_pays_nothing(tmp_path: Path) -> None:
    config = scripted_config(align=AlignConfig(inputs=2))
    counts = []
    for stage in ("collect", "train", "align", "align"):
        model = ScriptedCompleter(answer)
        run_stages(config, tmp_path / "run", stage, QUIET, model)
        counts.append(len(model.requests))
    assert counts[2] > 0 == counts[3]


def test_without_a_local_reward_the_stage_says_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(MissingStage, match="--stage=train"):
        run_stages(scripted_config(), tmp_path / "run", "align", QUIET, ScriptedCompleter(answer))


def test_tokens_limit_the_stage(tmp_path: Path) -> None:
    for stage in ("collect", "train", "align"):
        run_stages(
            scripted_config(align=AlignConfig(inputs=2)), tmp_path / "run", stage, QUIET, ScriptedCompleter(answer)
        )
    before = (tmp_path / "run" / "alignment.json").read_text()
    with pytest.raises(StopRun, match=r"config\.align\.tokens = 300 or config\.budget ends alignment"):
        run_stages(
            scripted_config(align=AlignConfig(inputs=8, tokens=300)),
            tmp_path / "run",
            "align",
            QUIET,
            ScriptedCompleter(answer),
        )
    assert (tmp_path / "run" / "alignment.json").read_text() == before
