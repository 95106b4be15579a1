"""Runs over several processes on this machine, beside the same run in one."""

import json
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from processes import Processes
from safetensors.numpy import load_file, save_file

from optimas_jax.checkpoints.weights import hf_name
from optimas_jax.models.backbone import abstract_params
from optimas_jax.models.config import config_from_hf
from optimas_jax.parallel.link import LOST
from optimas_jax.parallel.platform import default_compute

pytestmark = pytest.mark.long

SMOKE = ["launch/run.py", "--config=configs/hotpotqa.py:smoke"]
POLICY = {"updates": 1, "prompts": 2, "samples": 2, "epochs": 1, "minibatch": 2, "validate_every": 1}
WEIGHTS = [
    *SMOKE,
    "--config.system.weights=answer_generator",
    *(f"--config.policy.{name}={value}" for name, value in POLICY.items()),
]

# SmolLM2 with a LoRA adapter, a single iteration of few rows.
EMBEDDED = [
    "launch/run.py",
    "--config=configs/hotpotqa.py:weights",
    *(f"--config.policy.{name}={value}" for name, value in {**POLICY, "prompts": 4, "samples": 4}.items()),
    *(f"--config.data.{name}={rows}" for name, rows in {"train": 8, "val": 4, "test": 8, "confirm": 6}.items()),
    "--config.offline.inputs=8",
    "--config.offline.groups=2",
    "--config.offline.calls=24",
    "--config.optimize.iterations=1",
    "--config.optimize.components=answer_generator",
    "--config.optimize.inputs=4",
    "--config.optimize.adapt_inputs=4",
]


def numbers(tree):
    """All floats of plain data, in order."""
    if isinstance(tree, dict):
        return [number for key in sorted(tree) for number in numbers(tree[key])]
    if isinstance(tree, list):
        return [number for part in tree for number in numbers(part)]
    return [tree] if isinstance(tree, float) else []


def without_numbers(tree):
    """Plain data with 0.0 for floats."""
    if isinstance(tree, dict):
        return {key: without_numbers(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [without_numbers(part) for part in tree]
    return 0.0 if isinstance(tree, float) else tree


def assert_alike(here, there, tolerance=1e-6):
    """Equal texts, decisions and tokens; floats to ``tolerance``."""
    assert without_numbers(here) == without_numbers(there)
    np.testing.assert_allclose(numbers(here), numbers(there), rtol=tolerance, atol=tolerance)


def run(command, count, folder, devices=4):
    with Processes(command, count, folder, devices) as processes:
        codes = processes.wait()
        assert codes == [0] * count, "\n".join(processes.printed(index)[-3000:] for index in range(count))


_TIMES = ("seconds", "time", "at", "elapsed", "started", "finished", "wall_seconds", "peak_rss_mb")


def timeless(tree):
    if isinstance(tree, dict):
        return {key: timeless(value) for key, value in tree.items() if key not in _TIMES}
    return [timeless(part) for part in tree] if isinstance(tree, list) else tree


def found_in(folder: Path):
    """What a run decided, answered and measured, without times."""
    journal = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    rejected = folder / "proposals.jsonl"  # absent if nothing was proposed
    proposals = [json.loads(line) for line in rejected.read_text().splitlines()] if rejected.exists() else []
    evaluation = [json.loads(line) for line in (folder / "evaluations/test.jsonl").read_text().splitlines()]
    results = json.loads((folder / "results.json").read_text())
    return timeless({"journal": journal, "proposals": proposals, "test": evaluation, "results": results})


def without_ledger(found):
    """A run that was resumed accounts for fewer requests: it does not make again what was recorded."""
    return {**found, "results": {name: part for name, part in found["results"].items() if name != "ledger"}}


def test_a_leader_and_its_follower_compute_what_one_process_computes(tmp_path):
    found = {}
    for count in (1, 2):
        folder = tmp_path / str(count)
        run(["tests/lockstep_program.py", f"--out={folder}"], count, folder)
        found[count] = json.loads((folder / "found.json").read_text())
        assert found[count].pop("processes") == count
    assert_alike(found[1], found[2])
    assert len(found[1]["texts"]) == 8


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The run in one process."""
    folder = tmp_path_factory.mktemp("one")
    run([*SMOKE, f"--workdir={folder / 'run'}"], 1, folder)
    return found_in(folder / "run")


@pytest.mark.parametrize("count", [2, 4])
def test_smoke_decides_and_answers_the_same(tmp_path, smoke, count):
    run([*SMOKE, f"--workdir={tmp_path / 'run'}"], count, tmp_path)
    assert_alike(found_in(tmp_path / "run"), smoke)


@pytest.mark.parametrize(
    ("command", "devices"),
    [(WEIGHTS, 4), pytest.param(EMBEDDED, 2, marks=pytest.mark.embedded)],
    ids=["tiny", "SmolLM2"],
)
def test_weights_are_tuned_the_same(tmp_path, command, devices):
    for count in (1, 2):
        run([*command, f"--workdir={tmp_path / str(count) / 'run'}"], count, tmp_path / str(count), devices)
    found, weights = {}, {}
    for count in (1, 2):
        [adapter] = (tmp_path / str(count) / "run" / "adapters").iterdir()
        weights[count] = load_file(adapter / "adapter_model.safetensors")
        text = json.dumps(found_in(tmp_path / str(count) / "run"))
        assert adapter.name in text
        found[count] = json.loads(text.replace(adapter.name, "adapter"))  # it is named by its content
    assert_alike(found[2], found[1])
    for name, array in weights[1].items():  # Adam divides a gradient by its size, and so its last digits, too
        np.testing.assert_allclose(weights[2][name], array, atol=2e-5)


@pytest.mark.parametrize("killed", [0, 1])
def test_the_end_of_a_process_ends_all_and_the_same_command_resumes(tmp_path, smoke, killed):
    command = [*SMOKE, f"--workdir={tmp_path / 'run'}"]
    with Processes(command, 2, tmp_path / "killed") as processes:
        processes.wait_for(0, "  keyword_extractor: ")  # groups are collected, nothing is trained
        processes.send(killed)
        start = time.monotonic()
        codes = processes.wait(60)
        assert time.monotonic() - start < 60
        assert codes[killed] == -signal.SIGKILL
        assert codes[1 - killed] == LOST or (killed == 0 and codes[1] == -signal.SIGABRT)  # where JAX notices first
        told = processes.printed(1 - killed)
        assert ("process 1 on" in told) if killed else ("process 0 has gone" in told or "leader task" in told)
    run(command, 2, tmp_path / "again")
    here = found_in(tmp_path / "run")
    assert here["results"]["paid_calls"] == smoke["results"]["paid_calls"]
    assert_alike(without_ledger(here), without_ledger(smoke))


def test_a_stop_of_process_0_ends_all_in_order(tmp_path):
    with Processes([*SMOKE, f"--workdir={tmp_path / 'run'}"], 2, tmp_path) as processes:
        processes.wait_for(0, "  keyword_extractor: ")
        processes.send(0, signal.SIGTERM)
        assert processes.wait(60) == [143, 143]
        assert "the same command resumes" in processes.printed(0)


def test_a_process_that_stands_still_ends_all(tmp_path):
    with Processes([*SMOKE, f"--workdir={tmp_path / 'run'}"], 2, tmp_path) as processes:
        processes.wait_for(0, "collect")
        time.sleep(20)
        processes.send(1, signal.SIGSTOP)
        start = time.monotonic()
        while "has given no sign of life" not in processes.printed(0):
            assert time.monotonic() - start < 60
            time.sleep(0.5)


def test_an_error_of_the_run_ends_all(tmp_path):
    bad = [*SMOKE, f"--workdir={tmp_path / 'run'}", "--config.mesh.data=1"]
    with Processes(bad, 2, tmp_path) as processes:
        assert processes.wait(300) == [1, 1]
        assert "leaves process 1 without a device" in processes.printed(0)


def write_model(folder: Path, scale: int):
    """A random Llama in four files, ``scale`` times as wide as ``random:0``."""
    sizes = {"hidden_size": 64 * scale, "intermediate_size": 128 * scale, "vocab_size": 1024}
    folder.mkdir()
    text = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16 * scale,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 512,
        "rope_theta": 1e4,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        **sizes,
    }
    (folder / "config.json").write_text(json.dumps(text))

    config, rng = config_from_hf(text), np.random.default_rng(0)
    leaves = jax.tree_util.tree_leaves_with_path(abstract_params(config, default_compute("cpu")))
    tensors = {
        hf_name(tuple(part.key for part in path), config): rng.normal(size=leaf.shape).astype(np.float32)
        for path, leaf in leaves
    }
    names, index = sorted(tensors), {}
    for number in range(4):
        file = f"model-{number}.safetensors"
        part = {name: tensors[name] for name in names[number::4]}
        save_file(part, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return sum(tensor.nbytes for tensor in tensors.values())


def test_every_process_reads_its_own_slices(tmp_path):
    total = write_model(tmp_path / "model", 16)
    found = {}
    for count in (1, 2):
        with Processes(
            ["tests/slices_program.py", f"--model={tmp_path / 'model'}"], count, tmp_path / str(count)
        ) as on:
            codes = on.wait(600)
            assert codes == [0] * count, on.printed(0) + on.printed(count - 1)
            lines = [on.printed(index).splitlines() for index in range(count)]
        found[count] = [json.loads(next(one for one in of if one.startswith("found "))[6:]) for of in lines]
    assert found[1][0]["read"] == total
    for index, one in enumerate(found[2]):
        assert one["read"] <= 0.6 * total
        assert one["beside"] <= one["largest"] + (8 << 20)
        if index == 0:  # the first device holds the same part
            assert one["sums"] == pytest.approx(found[1][0]["sums"], rel=1e-6)
