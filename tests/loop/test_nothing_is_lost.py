"""The run folder: evaluations, proposals and costs that no later command overwrites."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import ScriptedCompleter
from rich.console import Console
from scripted import answer, scripted_config

import optimas_jax as oj
from optimas_jax.core import shipped
from optimas_jax.core.stats import compare
from optimas_jax.llm.base import CompletionRequest
from optimas_jax.llm.local import EngineError
from optimas_jax.loop.config import EvaluateConfig, RunConfig
from optimas_jax.loop.folder.proposals import gate_verdict
from optimas_jax.loop.folder.record import command_line
from optimas_jax.loop.stages import STAGES, run_stages
from optimas_jax.report.console import ConsoleProgress
from optimas_jax.report.run import report_run
from optimas_jax.search.gate import GateConfig, chance_of_passing


def small(**evaluate: Any) -> RunConfig:
    """A search without training, in which the gate accepts and refuses."""
    base = scripted_config(evaluate=EvaluateConfig(**evaluate))
    search = dataclasses.replace(base.optimize, score="off", iterations=4, instructions=3, gate_top=2)
    data = dataclasses.replace(base.data, val=16)
    return dataclasses.replace(base, optimize=search, data=data, offline=dataclasses.replace(base.offline, groups=0))


def run(
    workdir: Path,
    config: RunConfig,
    respond: Callable[[CompletionRequest], str] = answer,
    stage: str = "all",
    command: str = "launch/run.py",
) -> tuple[str, int]:
    """The label of the evaluation, and the number of requests."""
    model, progress = ScriptedCompleter(respond), ConsoleProgress(Console(file=io.StringIO()))
    label = run_stages(config, workdir, stage, progress, model, command=command)
    report_run(workdir, progress, label)
    return label, len(model.requests)


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def content(path: Path) -> bytes:
    """A file's bytes, or what the tables of the tape hold."""
    if path.suffix != ".sqlite":
        return path.read_bytes()
    with contextlib.closing(sqlite3.connect(path)) as db:
        return json.dumps([db.execute(f"SELECT * FROM {name} ORDER BY key").fetchall() for name in TABLES]).encode()


TABLES = ("effects", "scores")
GROWING = ("journal.jsonl", "tape.sqlite")  # logs, which new work is added to


def files(workdir: Path) -> dict[str, str]:
    """Digest of every file, and the text of the journal."""
    paths = {str(path.relative_to(workdir)): path for path in workdir.rglob("*") if path.is_file()}
    whole = {name: hashlib.sha256(content(path)).hexdigest() for name, path in paths.items()}
    return {**whole, "journal.jsonl": paths["journal.jsonl"].read_text(encoding="utf-8")}


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("searched") / "run"
    assert run(workdir, small())[0] == "test"
    return workdir


def test_other_evaluations_and_replays_leave_every_earlier_file_byte_for_byte(searched: Path) -> None:
    before = files(searched)
    commands = [
        (small(), "all", "test", ["run-2.json"]),
        (small(split="val"), "all", "val", ["config-2.json", "run-3.json"]),
        (small(repeats=2), "evaluate", "test-2", ["config-3.json", "run-4.json"]),
        (small(folder=str(searched / "best")), "evaluate", "test-3", ["config-4.json", "run-5.json"]),
    ]
    for config, stage, label, written in commands:
        pages = [] if label == "test" else [f"evaluations/{label}.{kind}" for kind in ("html", "json", "jsonl")]
        assert run(searched, config, stage=stage, command=f"{label} {stage}")[0] == label
        after = files(searched)
        assert sorted(set(after) - set(before)) == sorted([*pages, *written])
        kept = [name for name in before if name not in GROWING]
        assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
        assert after["journal.jsonl"].startswith(before["journal.jsonl"])
        before = after
    for config, stage, label, _ in commands:  # all of them again, which pay nothing and were told of before
        _, paid = run(searched, config, stage=stage, command=f"{label} {stage}")
        again = files(searched)
        new = set(again) - set(before)
        assert not paid and all(name.startswith(("run-", "config-")) for name in new)
        assert {name: again[name] for name in before} == before
        before = again
    assert read(searched / "results.json") == read(searched / "evaluations" / "test.json")


def test_the_rows_of_an_evaluation_hold_what_its_scores_came_from(searched: Path) -> None:
    results, examples = read(searched / "results.json"), rows(searched / "evaluations" / "test.jsonl")
    assert len(examples) == results["n"] == 12
    for side, scores in (("before", results["baseline"]["scores"]), ("after", results["optimized"]["scores"])):
        assert [row[side]["score"] for row in examples] == scores
        assert all(len(row[side]["runs"]) == 1 for row in examples)
    [first] = examples[0]["after"]["runs"]
    assert set(examples[0]) == {"id", "kind", "inputs", "gold", "before", "after"}
    assert first["calls"][-1]["component"] == "answer_generator" and first["calls"][-1]["outputs"] == first["outputs"]
    assert {"component", "occurrence", "inputs", "outputs", "outcome", "detail"} == set(first["calls"][0])


def test_every_proposal_has_a_verdict_and_a_gated_one_its_text_parent_and_reason(searched: Path) -> None:
    proposals = rows(searched / "proposals.jsonl")
    events = rows(searched / "journal.jsonl")
    gates = [event for event in events if event["event"] == "gate"]
    gated = [row for row in proposals if row["gate"]]
    assert len({row["id"] for row in proposals}) == len(proposals)
    assert {(event["value"], event["accepted"]) for event in gates} == {
        (row["digest"], row["verdict"] == "accepted") for row in gated
    }
    assert all(row["text"] and row["parent"] and row["reason"] and row["optimiser"] for row in gated)
    raced = sum(event["event"] == "proposal" for event in events)
    dropped = sum(sum(event["dropped"].values()) for event in events if event["event"] == "proposed")
    assert len(proposals) == raced + dropped and all(row["verdict"] and row["reason"] for row in proposals)
    accepted = [row for row in proposals if row["verdict"] == "accepted"]
    later = [row for row in proposals if row["iteration"] > accepted[0]["iteration"]]
    assert {row["parent"] for row in later if row["component"] == accepted[0]["component"]} <= {
        row["digest"] for row in accepted
    }


def test_a_test_that_is_given_up_early_says_when_and_why() -> None:
    new, old = [0.0] * 7 + [1.0], [1.0] * 7 + [0.0]
    differences = [after - before for after, before in zip(new, old, strict=True)]
    chance = chance_of_passing(GateConfig(), differences, 32)
    verdict = gate_verdict(compare(new, old), 32, chance, passed=False)
    assert verdict.verdict == "given up early" and verdict.gate is not None and verdict.gate["of"] == 32
    assert verdict.reason.startswith("given up after 8 of 32 examples: P = 0.01 that it would pass; gain -0.750 on 8")
    assert gate_verdict(compare(new, old), 8, 0.0, passed=False).verdict == "refused"
    assert gate_verdict(compare(old, new), 32, 1.0, passed=True).verdict == "accepted"


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_run_that_was_killed_has_the_same_proposals_and_its_costs_add_up(
    searched: Path, tmp_path: Path, share: float
) -> None:
    whole = read(searched / "run.json")
    seen = 0

    def dying(request: CompletionRequest) -> str:
        nonlocal seen
        seen += 1
        if seen > share * whole["paid_calls"]:
            raise EngineError("the server died")
        return answer(request)

    workdir = tmp_path / "run"
    with pytest.raises(EngineError):
        run(workdir, small(), dying)
    unfinished = read(workdir / "run.json")
    assert unfinished["finished"] is None and unfinished["paid_calls"] > 0
    if (workdir / "proposals.jsonl").is_file():  # as a process leaves it that is killed while it writes
        (workdir / "proposals.jsonl").write_bytes((workdir / "proposals.jsonl").read_bytes()[:-7])
    killed = {**unfinished, "parts": [{**unfinished["parts"][0], "seconds": None}]}
    (workdir / "run.json").write_text(json.dumps(killed))
    run(workdir, small())
    assert content(workdir / "proposals.jsonl") == content(searched / "proposals.jsonl")
    assert content(workdir / "evaluations" / "test.jsonl") == content(searched / "evaluations" / "test.jsonl")
    record = read(workdir / "run.json")
    assert record["paid_calls"] == whole["paid_calls"] and record["tokens"] == whole["tokens"]
    assert len(record["parts"]) == 2 and all(part["seconds"] is not None for part in record["parts"])
    assert record["seconds"] == pytest.approx(sum(part["seconds"] for part in record["parts"]), abs=0.2)
    assert read(workdir / "results.json")["paid_calls"] == whole["paid_calls"]
    assert not (workdir / "run-2.json").exists()


def test_stages_one_by_one_are_one_execution(searched: Path, tmp_path: Path) -> None:
    for stage in STAGES:
        run(tmp_path / "run", small(), stage=stage, command=f"launch/run.py --stage={stage}")
    record, whole = read(tmp_path / "run" / "run.json"), read(searched / "run.json")
    assert [part["command"][-8:] for part in record["parts"]] == ["=collect", "ge=train", "optimize", "evaluate"]
    assert record["paid_calls"] == whole["paid_calls"] and record["finished"]
    assert content(tmp_path / "run" / "proposals.jsonl") == content(searched / "proposals.jsonl")


def test_the_record_says_what_ran_without_secrets(searched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = read(searched / "run.json")
    assert record["command"] == "launch/run.py" and record["versions"]["numpy"] and record["finished"]
    assert set(record) == {
        *("command", "commit", "started", "finished", "versions", "platform", "devices", "parts"),
        *("seconds", "peak_rss_mb", "paid_calls", "prompt_tokens", "completion_tokens", "tokens", "usd", "uncertain"),
    }
    assert command_line(["launch/run.py", "--workdir=/home/me/runs/x", "--config=configs/a.py:b", "/data/y"]) == (
        "launch/run.py --workdir=x --config=configs/a.py:b y"
    )
    file, config = (str(shipped.folder(name)) for name in ("launch", "configs"))
    assert command_line([f"{file}/run.py", f"--config={config}/hotpotqa.py:smoke", "--config.seed=1"]) == (
        "optimas run --config=configs/hotpotqa.py:smoke --config.seed=1"
    )


def test_a_result_is_tables(searched: Path) -> None:
    result = oj.open_run(searched)
    assert len(result.examples) == 12
    flips = result.flips
    assert len(flips) and (flips["change"] != 0).all() and flips["change"].is_monotonic_increasing
    assert flips["after"][len(flips) - 1]["answer"] == flips["gold"][len(flips) - 1]["answer"]
    assert len(result.proposals) == len(rows(searched / "proposals.jsonl"))
    assert set(result.proposals["verdict"]) >= {"accepted", "refused", "not tested"}
    assert "gate.p_value" in result.proposals and "race.expected_gain" in result.proposals
    assert result.history["tokens"].is_monotonic_increasing and result.history["at"][0] == "start"
    assert result.by_kind["n"].sum() == 12
    assert result.cost["paid_calls"][0] > 0
    with pytest.raises(FileNotFoundError, match=r"no .*nothing.json: .* it has the evaluations test"):
        oj.open_run(searched, evaluation="nothing")


def test_a_notebook_shows_a_result_escaped(searched: Path) -> None:
    result = oj.open_run(searched)
    shown = dataclasses.replace(result, folder=Path("<script>"), results={**result.results, "metric": "<b>f1"})
    page = shown._repr_html_()
    assert "&lt;script&gt;" in page and "&lt;b&gt;f1" in page and "<script" not in page and "better" in page
