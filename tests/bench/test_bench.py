"""The instrument: what it counts, what it draws, how it talks to a peer, what it reports. No timing decides a test."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from runs import ROOT
from tiny import CONFIG as OTHER_CONFIG

from optimas_jax.bench import endtoend, measure, ours, peer, report, roofline, suites, work
from optimas_jax.bench.peer import Side, SideError
from optimas_jax.bench.work import Case, Work
from optimas_jax.checkpoints import export
from optimas_jax.checkpoints.sources import resolve
from optimas_jax.checkpoints.weights import load_config, load_params
from optimas_jax.learn.token_group import TokenGroup
from optimas_jax.models.config import BackboneConfig
from optimas_jax.parallel.platform import default_compute
from optimas_jax.parallel.speed import Rates, measure_rates

SPEC = "random:0"
# D = 4, one query and one kv head of size 2, F = 3, V = 10, two layers.
HAND = BackboneConfig("llama", 10, 4, 3, 2, 1, 1, 2, 64, tied_embeddings=True)
SMALL = {
    "lrf_score": dataclasses.replace(suites.LRF_SCORE[0], per_repeat=2, prefix=8, tokens=(4, 6)),
    "lrf_train": dataclasses.replace(suites.LRF_TRAIN[0], per_repeat=2, prefix=8, tokens=(4, 4), rank=2),
    "generate": dataclasses.replace(suites.GENERATE[0], total=4, per_repeat=4, prefix=8, tokens=(4, 6), new_tokens=3),
    "ppo": dataclasses.replace(suites.PPO[0], per_repeat=2, candidates=3, tokens=(8, 8), rank=2, new_tokens=4),
    "grpo": dataclasses.replace(suites.GRPO[0], per_repeat=2, candidates=3, tokens=(8, 8), rank=2, new_tokens=4),
    "curves": dataclasses.replace(suites.CURVES[0], per_repeat=2, prefix=8, tokens=(4, 4)),
}


def group(prefix: int, *candidates: int) -> TokenGroup:
    return TokenGroup((1,) * prefix, tuple((1,) * n for n in candidates), (0.0,) * len(candidates), 0)


# --- what is counted


def test_the_weights_of_a_layer() -> None:
    # q 4x2, k 4x2, v 4x2, o 2x4, gate 4x3, up 4x3, down 3x4
    assert roofline.layer_weights(HAND) == 8 + 8 + 8 + 8 + 12 + 12 + 12


def test_tokens_and_pairs_of_packed_groups() -> None:
    # Prefix 3: 6 pairs. A candidate of 2 after it: 2 x 3 and 3 of its own; one of 1: 3 and 1.
    assert roofline.packed_size([group(3, 2, 1)]) == (6, 6 + 9 + 4)
    assert roofline.packed_size([group(3, 2, 1), group(1, 1)]) == (8, 19 + 3)


def test_operations_of_a_forward_pass() -> None:
    # Two layers of 68 multiply-adds a token, and two products of one head of size 2 a pair.
    assert roofline.forward_flops(HAND, tokens=6, pairs=19) == 2 * (2 * 68 * 6) + 2 * (2 * 2 * 2 * 19)


def test_operations_of_a_training_step() -> None:
    forward = roofline.forward_flops(HAND, tokens=6, pairs=19)
    products = 2 * 6 * (2 * 68 - 24)  # dx, but not below the first layer's q, k, v (4 x 2 each)
    attention = 2 * (4 * 2 * 2 * 19)  # four products
    # Both sides of the seven matrices: q, k, v, o 6 each, gate, up, down 7 each; four products of rank 3 a layer.
    adapters = 2 * (4 * 2 * 6 * 3 * 45 / 2)
    assert 4 * 6 + 3 * 7 == 45
    assert roofline.train_flops(HAND, tokens=6, pairs=19, rank=3) == forward + products + attention + adapters


def test_least_time_of_generation_is_arithmetic_or_traffic_whichever_is_longer() -> None:
    prompts = [(1, 2, 3), (1, 2, 4)]  # two tokens shared
    head = 4 * 10
    prefill = roofline.forward_flops(HAND, tokens=4, pairs=3 + 2 * 3) + 2 * head * 2
    step = roofline.forward_flops(HAND, tokens=2, pairs=8) + 2 * head * 2  # each sees three tokens and itself
    traffic = 4 * (2 * 68 + head + 2 * 2 * 2 * 8)  # weights once; keys and values of size 2 in two layers
    fast_memory, slow_memory = Rates(1.0, 1e9), Rates(1e9, 1.0)
    assert roofline.generate_seconds(HAND, prompts, 2, 2, fast_memory) == pytest.approx(prefill + step)
    assert roofline.generate_seconds(HAND, prompts, 2, 2, slow_memory) == pytest.approx(prefill / 1e9 + traffic)


def test_one_at_a_time_reads_the_weights_for_every_request() -> None:
    case = dataclasses.replace(suites.GENERATE[1], total=2, per_repeat=2, new_tokens=2)
    drawn = Work(case, SPEC, prompts=((1, 2, 3), (1, 2, 4)))
    alone = roofline.generate_seconds(HAND, [(1, 2, 3)], 0, 2, Rates(1.0, 1.0))
    assert roofline.needed_seconds(HAND, drawn, Rates(1.0, 1.0)) == pytest.approx(2 * alone)


def test_least_time_of_an_update_is_that_of_its_phases() -> None:
    case = dataclasses.replace(SMALL["grpo"], per_repeat=1, candidates=2, new_tokens=2, rank=3, epochs=2)
    drawn = Work(case, SPEC, prompts=((1, 2, 3),))
    seconds = roofline.policy_seconds(HAND, drawn, Rates(1.0, 1e9))
    packed = roofline.packed_size([group(3, 2, 2)])
    head = 2 * 4 * 10 * 4  # four sampled tokens
    assert seconds["statistics"] == 2 * (roofline.forward_flops(HAND, *packed) + head)
    assert seconds["update"] == 2 * (roofline.train_flops(HAND, *packed, 3) + 2 * head)
    # The prompt once, and one step of two rows that see four tokens each.
    prefill = roofline.forward_flops(HAND, tokens=3, pairs=6) + 2 * 40
    assert seconds["rollout"] == prefill + roofline.forward_flops(HAND, tokens=2, pairs=8) + 2 * 40 * 2
    assert roofline.needed_seconds(HAND, drawn, Rates(1.0, 1e9)) == sum(seconds.values())


def test_measured_rates_are_finite() -> None:
    rates = measure_rates(np.dtype(np.float32))
    assert 1e8 < rates.flops < 1e16 and 1e8 < rates.bandwidth < 1e14


# --- what is drawn


@pytest.mark.parametrize("case", [case for cases in suites.SUITES.values() for case in cases], ids=lambda c: c.name)
def test_work_is_the_same_every_time_and_survives_json(case: Case) -> None:
    drawn = work.draw(case, SPEC, range(20, 400), 16)
    assert drawn == work.draw(case, SPEC, range(20, 400), 16)
    assert work.from_json(json.loads(json.dumps(work.to_json(drawn)))) == drawn
    assert case.total % case.per_repeat == 0
    if case.task == "generate" or case.is_policy:
        assert len({prompt[: case.prefix] for prompt in drawn.prompts}) == 1
        assert len(set(drawn.prompts)) == case.total
        lengths = [len(prompt) - case.prefix for prompt in drawn.prompts]
        assert case.tokens[0] <= min(lengths) and max(lengths) <= case.tokens[1]
    else:
        assert all(len(set(group.rewards)) == case.candidates for group in drawn.groups)
        assert {len(ids) for group in drawn.groups for ids in group.candidate_ids} == {case.tokens[0]}


def test_names_of_cases_are_unique_within_a_suite() -> None:
    for suite, cases in suites.SUITES.items():
        assert {case.suite for case in cases} == {suite} and len({case.name for case in cases}) == len(cases)


def test_repeats_take_the_next_part_round_and_round() -> None:
    case = dataclasses.replace(SMALL["lrf_score"], total=4, per_repeat=2)
    drawn = work.draw(case, SPEC, range(20, 400), 16)
    assert drawn.groups_of(0) == list(drawn.groups[:2]) == drawn.groups_of(2)
    assert drawn.groups_of(1) == list(drawn.groups[2:])


def test_only_ordinary_tokens_are_drawn() -> None:
    case = dataclasses.replace(SMALL["generate"], total=64, per_repeat=64, tokens=(64, 64))
    drawn = measure.make_work(case, SPEC, for_peers=False)
    used = {token for prompt in drawn.prompts for token in prompt}
    assert max(used) < 256 and len(used) > 200  # the words and special tokens come after the bytes


# --- how a peer is asked

FAKE = """
import sys, json
from optimas_jax.bench.serve import serve
from optimas_jax.bench.work import from_json
def prepare(data):
    work = from_json(data)
    print("chatter of a library")
    def run(repeat):
        assert repeat < 2, "no third time"
        return {"seconds": 0.5 + repeat, "output": [float(repeat)]}
    return run, f"{len(work.groups)} groups"
serve(prepare)
"""


def side(code: str, tmp_path: Path) -> Side:
    script = tmp_path / "fake.py"
    script.write_text(code)
    return Side("fake", [sys.executable, str(script)])


def test_a_peer_prepares_runs_and_reports_memory(tmp_path: Path) -> None:
    drawn = work.draw(SMALL["lrf_score"], SPEC, range(20, 400), 16)
    with side(FAKE, tmp_path) as fake:
        assert fake.ask({"prepare": work.to_json(drawn)})["note"] == "64 groups"
        answer = fake.ask({"run": 1})
        assert answer["seconds"] == 1.5 and answer["output"] == [1.0]
        assert 1 < answer["peak_mb"] < 200  # its own, not this process's
        with pytest.raises(SideError, match=r"(?s)fake failed to run.*no third time"):
            fake.ask({"run": 2})


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys; sys.exit('no torch here')", r"(?s)ended with exit code 1 when asked to prepare.*no torch here"),
        ("input(); print('hello')", "answered prepare with 'hello.*not with a JSON object"),
        ("input(); print(3)", "answered prepare with '3"),
        ("import os, signal; input(); os.kill(os.getpid(), signal.SIGKILL)", "ended with exit code -9"),
    ],
)
def test_a_peer_that_dies_or_prints_nonsense_is_named(tmp_path: Path, code: str, message: str) -> None:
    with pytest.raises(SideError, match=message), side(code, tmp_path) as fake:
        fake.ask({"prepare": {}})


def test_without_their_environment_peers_say_how_to_make_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "PEERS", tmp_path)
    with pytest.raises(SideError, match=r"install\.sh"):
        measure.run_case(SMALL["lrf_score"], SPEC, [peer.PEERS_BY_NAME["torch"]], 1, print)


def test_scripts_of_peers_exist() -> None:
    scripts = {script for known in peer.PEERS_BY_NAME.values() for script in known.scripts.values()}
    assert all((peer.PEERS / script).is_file() for script in scripts)


# --- a measurement


class InProcess:
    """Our side without a process of its own; ``shift`` spoils its answers."""

    def __init__(self, name: str, shift: float = 0.0):
        self.name, self._shift = name, shift

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        message = json.loads(json.dumps(message))
        if "prepare" in message:
            self._run, note = ours.prepare(message["prepare"])
            return {"note": note, "peak_mb": 1.0}
        answer = json.loads(json.dumps(self._run(message["run"])))
        return {**answer, "output": [value + self._shift for value in answer["output"]], "peak_mb": 1.0}


_LONG = ("ppo", "grpo", "lrf_train")


@pytest.mark.parametrize("suite", [pytest.param(one, marks=[pytest.mark.long] * (one in _LONG)) for one in SMALL])
def test_every_suite_reports_well_formed_rows(suite: str, tmp_path: Path) -> None:
    case = SMALL[suite]
    drawn = measure.make_work(case, SPEC, for_peers=False)
    lines: list[str] = []
    mine, other = measure.measure(drawn, [InProcess("ours"), InProcess("other")], 2, lines.append, exact=["other"])
    least = roofline.needed_seconds(load_config(resolve(SPEC)), drawn, Rates(1e11, 1e10))
    parts = roofline.policy_seconds(load_config(resolve(SPEC)), drawn, Rates(1e11, 1e10)) if case.is_policy else {}
    rows = measure.rows(case, mine, {"other": other}, least, parts) + measure.rows(case, mine, {}, least, parts)
    assert len(mine.seconds) == 2 and len(lines) == 4
    expected = {"generate": 4 * 3, "lrf_train": 1, "lrf_score": 8, "ppo": 1, "grpo": 1, "curves": 2}[suite]
    assert len(mine.output) == expected

    report.save(rows, tmp_path / "rows.json")
    saved = json.loads((tmp_path / "rows.json").read_text())
    with_peer, alone = saved[: len(saved) // 2], saved[len(saved) // 2 :]
    for row in with_peer:
        assert row["ratio"] > 0 and row["interval"] is None and row["peer_name"] == "other"
        assert row["agreement"] == (1.0 if case.task == "generate" else 0.0)
        assert row["roofline_fraction"] > 0 and set(row["spread"]) == set(row["peak_mb"]) == {"ours", "peer"}
    phases = ["rollout/s", "statistics/s", "update/s"] if case.is_policy else []
    assert [row["unit"] for row in with_peer] == [row["unit"] for row in alone] == [*case.units(), *phases]
    assert all(row["peer"] is row["ratio"] is row["agreement"] is None for row in alone)
    assert report.table(rows).row_count == len(rows) + 1


def test_answers_that_differ_stop_the_measurement() -> None:
    drawn = measure.make_work(SMALL["lrf_score"], SPEC, for_peers=False)
    sides = [InProcess("ours"), InProcess("other", shift=0.01)]
    with pytest.raises(measure.NotTheSameWork, match="other and ours"):
        measure.measure(drawn, sides, 2, lambda _: None, exact=["other"])
    assert len(measure.measure(drawn, sides, 1, lambda _: None)) == 2  # a peer with weights of its own may differ


def test_agreement_of_tokens_and_numbers() -> None:
    assert measure.agreement("generate", [1, 2, 3, 4], [1, 2, 3, 5]) == 0.75
    assert measure.agreement("score", [0.5, -20.0], [0.6, -22.0]) == pytest.approx(0.1)
    with pytest.raises(measure.NotTheSameWork):
        measure.agreement("score", [0.5], [])


def test_spread_is_range_over_median() -> None:
    assert report.spread([2.0, 3.0, 2.0, 2.0, 1.0]) == 1.0


def test_ratios_are_taken_repeat_by_repeat() -> None:
    seconds = (1.0, 2.0, 4.0, 8.0, 1.0, 2.0, 4.0)  # a machine that others use, too
    mine, other = (measure.Measured(tuple(factor * s for s in seconds), (0.0,), 1.0, "") for factor in (1.0, 1.5))
    slow = dataclasses.replace(other, seconds=(*other.seconds[:-1], 16.0))
    row, mixed = (measure.rows(SMALL["lrf_score"], mine, {"p": p}, 1.0)[0] for p in (other, slow))
    assert (row.ratio, row.interval) == (1.5, (1.5, 1.5))
    assert (mixed.ratio, mixed.interval) == (1.5, (1.5, 4.0))


@pytest.mark.parametrize(("count", "expected"), [(0, None), (5, None), (6, (1, 6)), (8, (1, 8)), (9, (2, 8))])
def test_an_interval_of_a_median_holds_it_with_95_percent(count: int, expected: tuple[int, int] | None) -> None:
    # All n on one side of the median: 2 / 2^n; all but at most one: 2 (1 + n) / 2^n, at n = 9 0.039, at n = 8 0.070.
    assert report.median_interval([*range(count, 0, -1)]) == expected


def test_a_baseline_imports_its_own_checkout(tmp_path: Path) -> None:
    (tmp_path / "optimas_jax" / "bench").mkdir(parents=True)
    (tmp_path / "optimas_jax" / "bench" / "ours.py").write_text('input(); print(\'{"note": "as it was"}\')\n')
    earlier = peer.baseline("abc123", tmp_path)
    assert earlier.name == "abc123" and set(earlier.scripts) == {case.task for case in SMALL.values()}
    with Side(earlier.name, earlier.command("ppo"), earlier.tree) as worker:
        assert worker.ask({"prepare": {}}) == {"note": "as it was"}


@pytest.mark.long
def test_the_command_measures_and_writes_json(tmp_path: Path) -> None:
    command = [sys.executable, "launch/bench.py", "--suite=curves", "--case=generate, batch 1", f"--model={SPEC}"]
    command += ["--repeats=1", f"--json={tmp_path / 'rows.json'}"]  # batches of 1 and of 16
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    saved = json.loads((tmp_path / "rows.json").read_text())
    assert [row["unit"] for row in saved] == ["requests/s", "sampled tokens/s"] * 2
    assert "generate, batch 16" in done.stdout and "GFLOP/s" in done.stdout


@pytest.mark.parametrize("flags", [["--peer=nobody"], ["--suite=lrf_score", "--peer=trl"], ["--case=M=3"]])
def test_what_cannot_be_measured_is_refused(flags: list[str]) -> None:
    command = [sys.executable, "launch/bench.py", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0 and flags[-1].split("=", 1)[1] in done.stdout + done.stderr


# --- weights for peers


def test_an_exported_model_loads_as_itself(tmp_path: Path) -> None:
    source = resolve(SPEC)
    export.export(source, tmp_path / "model")
    copy = resolve(str(tmp_path / "model"))
    config = load_config(source)
    assert load_config(copy) == config
    compute = default_compute()
    pairs = zip(
        jax.tree.leaves(load_params(source, config, compute)),
        jax.tree.leaves(load_params(copy, config, compute)),
        strict=True,
    )
    assert all(np.array_equal(a, b) for a, b in pairs)
    assert export.hf_folder(copy) == copy.path


def test_switches_of_other_architectures_survive_the_config() -> None:
    from optimas_jax.models.config import config_from_hf

    for architecture in ("qwen2", "qwen3"):
        config = dataclasses.replace(
            OTHER_CONFIG,
            architecture=architecture,
            qkv_bias=architecture == "qwen2",
            qk_norm=architecture == "qwen3",
            rope_theta=5e5,
        )
        assert config_from_hf(export.hf_config(config)) == config


# --- end to end

JOB = """
import argparse, json, pathlib
parser = argparse.ArgumentParser()
parser.add_argument("--config"), parser.add_argument("--workdir", type=pathlib.Path)
parser.add_argument("--config.seed")
args = parser.parse_args()
args.workdir.mkdir()
part = {{"mean": {mean}, "ci95": [0.0, 1.0]}}
result = {{"baseline": part, "optimized": part, "peak_rss_mb": {mean}}}
(args.workdir / "results.json").write_text(json.dumps(result))
"""


def test_end_to_end_runs_both_commits_and_leaves_no_work_tree(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
        return subprocess.run(
            ["git", *identity, *words], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout

    (tmp_path / "launch").mkdir()
    script = tmp_path / "launch" / "run.py"
    script.write_text(JOB.format(mean=0.25))
    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "before")
    script.write_text(JOB.format(mean=0.75))  # as it stands, committed or not

    lines: list[str] = []
    row = endtoend.run_end_to_end("configs/x.py", "HEAD", lines.append, ["seed=1"], tmp_path)
    assert row.peak_mb == {"ours": 0.75, "peer": 0.25} and row.peer_name == "HEAD"
    assert row.case == "configs/x.py seed=1"
    assert row.ratio == pytest.approx(row.ours / row.peer)
    assert len(git("worktree", "list").splitlines()) == 1
    assert endtoend.run_end_to_end("configs/x.py", "", lines.append, root=tmp_path).ratio is None
    with pytest.raises(SideError, match="cannot check out 'nowhere'"):
        endtoend.run_end_to_end("configs/x.py", "nowhere", lines.append, root=tmp_path)
    script.write_text("raise SystemExit('it broke')")
    with pytest.raises(SideError, match=r"(?s)failed at ours.*it broke"):
        endtoend.run_end_to_end("configs/x.py", "", lines.append, root=tmp_path)
