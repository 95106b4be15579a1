"""Hidden states of every layer and logits equal transformers' (torch, float32); see third_party/make_golden.py."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from optimas_jax.checkpoints.sources import resolve
from optimas_jax.checkpoints.tokenizer import load_tokenizer
from optimas_jax.checkpoints.weights import load_config, load_params, params_from_tensors
from optimas_jax.engine.sampler import Sampler, SampleRequest
from optimas_jax.engine.sampling import empty_cache
from optimas_jax.models.backbone import Network, embed, merge_model
from optimas_jax.models.config import config_from_hf
from optimas_jax.models.forward import forward, run_layers
from optimas_jax.parallel.platform import Compute, default_compute

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = sorted(path.stem.removeprefix("backbone_") for path in GOLDEN.glob("backbone_*.npz"))
TOLERANCE = 1e-4


def load(name: str, attention: str):
    """Network, parameters and config as the package reads them, and the stored arrays."""
    golden = np.load(GOLDEN / f"backbone_{name}.npz")
    config = config_from_hf(json.loads(str(golden["config"])))
    compute = Compute(jnp.dtype(jnp.float32), attention, cpu_forms=attention == "tiled")
    tensors = {
        key.removeprefix("weights/"): functools.partial(golden.__getitem__, key)
        for key in golden.files
        if key.startswith("weights/")
    }
    return Network(config, compute), params_from_tensors(tensors, config, compute, where=name), config, golden


def check(what: str, actual: jax.Array, expected: np.ndarray) -> None:
    assert actual.shape == expected.shape, what
    worst = float(np.abs(np.asarray(actual) - expected).max())
    assert worst < TOLERANCE, f"{what}: largest difference {worst:.2e}, allowed {TOLERANCE:.0e}"


def test_every_architecture_is_stored():
    families = ("gemma3", "gemma3_linear", "llama", "llama31", "llama32", "qwen2", "qwen2_tied", "qwen3", "qwen3_tied")
    assert (*families, "smollm3") == tuple(NAMES)


@pytest.mark.parametrize("attention", ["tiled", "chunked"])
@pytest.mark.parametrize("name", NAMES)
def test_layers_and_logits(name, attention):
    network, params, config, golden = load(name, attention)
    rows, length = golden["input_ids"].shape
    flat = tiny.plain(*golden["input_ids"].tolist(), tiled=attention == "tiled")

    def per_row(flat_array):
        return flat_array[: rows * length].reshape(rows, length, -1)

    model = merge_model(network, params)
    x = embed(model.embed[...], flat.input_ids, config, jnp.float32)
    for index in range(config.num_layers):
        x = run_layers(network, params, x, flat.positions, flat.layout, range(index, index + 1))
        check(f"{name}, layer {index}", per_row(x), golden[f"hidden/{index}"])
    hidden = per_row(forward(network, params, *flat))
    check(f"{name}, final norm", hidden, golden["hidden/final_norm"])
    check(f"{name}, logits", model.logits(hidden), golden["logits"])


@pytest.mark.parametrize("name", NAMES)
def test_cached_decoding(name):
    """One token at a time through the cache gives the logits of the whole row."""
    network, params, _, golden = load(name, "tiled")
    input_ids = jnp.asarray(golden["input_ids"])
    rows, length = input_ids.shape

    @jax.jit
    def decode(params):
        def step(cache, slot):
            model = merge_model(network, params)
            hidden, cache = model.step(input_ids[:, slot], jnp.full((rows,), slot), cache)
            return cache, model.logits(hidden)

        return jax.lax.scan(step, empty_cache(network, rows, length), jnp.arange(length))[1].swapaxes(0, 1)

    check(f"{name}, logits of cached decoding", decode(params), golden["logits"])


def test_llama31_rows_reach_every_regime_of_the_scaled_rope():
    golden = np.load(GOLDEN / "backbone_llama31.npz")
    rope = json.loads(str(golden["config"]))["rope_parameters"]
    divisors = config_from_hf(json.loads(str(golden["config"]))).rope_divisors
    assert divisors is not None
    assert golden["input_ids"].shape[1] > 2 * rope["original_max_position_embeddings"]
    assert min(divisors) == 1.0
    assert max(divisors) == rope["factor"]
    assert any(1.0 < divisor < rope["factor"] for divisor in divisors)


@pytest.mark.long
@pytest.mark.embedded
def test_greedy_continuations_of_the_embedded_model(embedded_gguf):
    """20 prompts, chats and plain text, are continued as torch continues them with the same weights."""
    stored = json.loads((GOLDEN / "smollm2_greedy.json").read_text(encoding="utf-8"))
    source = resolve(str(embedded_gguf))
    config, compute, tokenizer = load_config(source), default_compute("cpu"), load_tokenizer(source)
    sampler = Sampler(Network(config, compute), load_params(source, config, compute), tokenizer)
    requests = []
    for case in stored:
        prompt = case["prompt"]
        ids = tokenizer.encode(prompt) if isinstance(prompt, str) else tokenizer.encode_chat(prompt)
        assert ids == case["prompt_ids"], prompt
        requests.append(SampleRequest(tuple(ids), max_tokens=20))
    samples = sampler.generate(requests)
    differ = [
        f"{case['prompt']!r}: {tokenizer.decode(sample.ids)!r}, torch: {tokenizer.decode(case['ids'])!r}"
        for case, sample in zip(stored, samples, strict=True)
        if list(sample.ids) != case["ids"]
    ]
    assert len(stored) == 20
    assert not differ, "\n".join(differ)
