"""Measures a device with a large model of random weights: memory predicted and measured, and decoding by rows.

python -m optimas_jax.bench.device [--model=8b|tiny] [--tokens=4096] [--rows=1,8,32,64,128,256] [--json=FILE]

Nothing is fetched: the model has the sizes of Llama 3 8B, and small waves as weights. ``launch/device_check.sh`` runs
it with the suites of ``launch/bench.py``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from optimas_jax.checkpoints.sources import resolve
from optimas_jax.checkpoints.tokenizer import load_tokenizer
from optimas_jax.checkpoints.weights import RANDOM_CONFIG
from optimas_jax.engine.memory import with_caches
from optimas_jax.engine.pool import LoadedModel, network_on
from optimas_jax.engine.sampler import Sampler, SampleRequest
from optimas_jax.learn.batches import make_batches
from optimas_jax.learn.config import LossConfig, TokenBatch
from optimas_jax.learn.memory import Step, placed_bytes, step_memory
from optimas_jax.learn.reward_model import RewardFunctions
from optimas_jax.learn.token_group import TokenGroup
from optimas_jax.learn.train_state import init_state, init_trainable, make_optimizer
from optimas_jax.models.backbone import abstract_params
from optimas_jax.models.config import BackboneConfig, LoraConfig
from optimas_jax.models.known import KNOWN
from optimas_jax.parallel.mesh import MeshConfig, make_mesh
from optimas_jax.parallel.platform import default_compute, free_memory
from optimas_jax.parallel.sharding import place, shardings

_LORA = LoraConfig(rank=32, alpha=16.0)
_STEPS, _NEW_TOKENS, _PROMPT = 5, 64, 128


def main() -> None:
    """Measures, and prints each row as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="8b", choices=["8b", "tiny"], help="sizes of the model")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens of a training step on each device")
    parser.add_argument("--rows", default="1,8,32,64,128,256", help="requests that are decoded together")
    parser.add_argument("--json", default="", help="file for the figures")
    args = parser.parse_args()
    config = KNOWN["hf:meta-llama/Meta-Llama-3-8B-Instruct"] if args.model == "8b" else RANDOM_CONFIG
    rows = []
    for row in measure(random_model(config), args.tokens, [int(count) for count in args.rows.split(",")]):
        rows.append(row)
        print(json.dumps(row), flush=True)
        if args.json:  # rows so far are kept if a later measurement fails
            Path(args.json).write_text(json.dumps(rows, indent=1), encoding="utf-8")


def random_model(config: BackboneConfig) -> LoadedModel:
    """A model of these sizes on all devices, with weights that are computed on the devices that store them."""
    mesh, compute = make_mesh(MeshConfig()), default_compute()
    tree = abstract_params(config, compute)
    leaves, structure = jax.tree.flatten(tree)

    def make() -> Any:
        """Weights that are cheap to compute: small waves over the index, so that outputs are not constant."""
        weights = []
        for number, leaf in enumerate(leaves):
            index = jax.lax.iota(jnp.float32, leaf.shape[-1])
            wave = 1.0 if leaf.ndim == 1 else 0.02 * jnp.sin(index * (1.0 + 0.01 * number))
            weights.append(jnp.broadcast_to(wave, leaf.shape).astype(leaf.dtype))
        return jax.tree.unflatten(structure, weights)

    params = jax.jit(make, out_shardings=shardings(tree, mesh))()
    return LoadedModel(network_on(mesh, config, compute), mesh, params, load_tokenizer(resolve("random:0")))


def measure(model: LoadedModel, tokens: int, rows: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Figures of a training step and of decoding, one dict each."""
    device = model.mesh.devices.flat[0]
    yield {
        "what": "device",
        "kind": device.device_kind,
        "count": model.mesh.size,
        "jax": jax.__version__,
        "weights": placed_bytes(model.params),
    }
    for remat in (False, True):
        yield reward_step(model, tokens, remat)
    for count in rows:
        yield decoding(model, count)


def reward_step(model: LoadedModel, tokens: int, remat: bool) -> dict[str, Any]:
    """A step of local rewards on groups of four candidates: seconds, and memory beside the weights."""
    network = model.for_training(TokenBatch(tokens, remat))
    predicted = step_memory(Step(network, model.mesh, _LORA), tokens)
    row = {"what": "reward step", "tokens": tokens, "remat": remat, "predicted": predicted.total}
    free = free_memory(model.mesh.devices.flat[0])
    if free is not None and predicted.total > free:
        return {**row, "skipped": f"{free} bytes are free"}
    functions = RewardFunctions(network, _LORA, LossConfig(), make_optimizer())
    trainable = init_trainable(network.config, _LORA, 1, jax.random.key(0))
    state = place(init_state(trainable, make_optimizer()), model.mesh)
    length = min(tokens, 2048)
    group = TokenGroup((5,) * (length // 2), ((6,) * (length // 8),) * 4, (0.0, 0.3, 0.6, 1.0), 0)
    parts = [[group] * (tokens // length)] * model.shards
    batch = model.put(make_batches(parts, candidates=8, pad_id=0, tiled=network.compute.tiled))
    features = functions.features(model.params, batch.flat)
    seconds = []
    for _ in range(_STEPS):
        start = time.perf_counter()
        state, metrics = functions.train_step(state, model.params, [(batch, features)], 0.0)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - start)
    weights = sum(leaf.size for leaf in jax.tree.leaves(model.params["layers"]))
    once = 2 * weights * tokens * model.shards / model.mesh.size
    return {
        **row,
        "peak": _peak(model),
        "first_seconds": seconds[0],
        "seconds": statistics.median(seconds[1:]),
        "tflops": once * (3 if remat else 2) / statistics.median(seconds[1:]) / 1e12,
    }


def _peak(model: LoadedModel) -> int | None:
    """The most bytes that a device had in use so far, without the weights; None if it does not report them."""
    stats = model.mesh.devices.flat[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use")
    return None if peak is None else peak - placed_bytes(model.params)


def decoding(model: LoadedModel, rows: int) -> dict[str, Any]:
    """Decodes so many requests together, twice; tokens a second of the second time."""
    network = with_caches(model.network, free_memory(model.mesh.devices.flat[0]))
    endless = dataclasses.replace(model.tokenizer, eos_ids=())
    sampler = Sampler(network, model.params, endless)
    requests = [SampleRequest((7 + row,) * _PROMPT, _NEW_TOKENS, seed=row) for row in range(rows)]
    seconds = []
    for _ in range(2):
        sampler.forget_prompts()
        start = time.perf_counter()
        samples = sampler.generate(requests)
        seconds.append(time.perf_counter() - start)
    sampled = sum(len(sample.ids) for sample in samples)
    return {"what": "decode", "rows": rows, "first_seconds": seconds[0], "tokens_per_second": sampled / seconds[1]}


if __name__ == "__main__":
    main()
