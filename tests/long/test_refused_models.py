"""Models that cannot be loaded as they are meant, refused by every command in two lines, without a traceback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from optimas_jax.checkpoints.export import export
from optimas_jax.checkpoints.sources import resolve

ROOT = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.long


def config(folder, **changes):
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**described, **changes}))


def tokens(folder, count, special=False):
    """Adds tokens behind the last id, up to ``count`` ids."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    last = tokenizer["added_tokens"][-1]
    first = max(token["id"] for token in tokenizer["added_tokens"]) + 1
    new = [{**last, "id": index, "content": f"<new{index}>", "special": special} for index in range(first, count)]
    tokenizer["added_tokens"] += new
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def weights(folder, change):
    stored = load_file(folder / "model.safetensors")
    change(stored)
    save_file(stored, folder / "model.safetensors")


# What is wrong -> how it came to be, and words of the message.
BROKEN = {
    "a token too many": (lambda f: tokens(f, 1025), "1 tokens more than the model's embedding"),
    "special tokens too many": (lambda f: tokens(f, 1030, special=True), "6 tokens more"),
    "an end beyond": (lambda f: (f / "generation_config.json").write_text('{"eos_token_id": [2000]}'), "'id 2000'"),
    "another architecture": (lambda f: config(f, model_type="mistral"), "model_type 'mistral'"),
    "no architecture": (lambda f: (f / "config.json").write_text("{}"), "model_type None"),
    "dynamic rope": (lambda f: config(f, rope_scaling={"type": "dynamic", "factor": 2.0}), "RoPE type 'dynamic'"),
    "yarn": (
        lambda f: config(f, rope_parameters={"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}),
        "RoPE type 'yarn'",
    ),
    "half a rope": (lambda f: config(f, partial_rotary_factor=0.5), "partial_rotary_factor"),
    "rope as a text": (lambda f: config(f, rope_parameters="linear"), "has rope_parameters 'linear'"),
    "a size as a text": (lambda f: config(f, hidden_size="64"), "has hidden_size '64'"),
    "no heads": (lambda f: config(f, num_attention_heads=0), "has num_attention_heads 0"),
    "a list as config": (lambda f: (f / "config.json").write_text("[]"), "expected an object"),
    "nested config": (lambda f: (f / "config.json").write_text("[" * 100_000), "is not whole JSON"),
    "biases": (lambda f: config(f, attention_bias=True), "attention_bias"),
    "quantised": (lambda f: config(f, quantization_config={"quant_method": "gptq"}), "quantised with 'gptq'"),
    "more layers": (lambda f: config(f, num_hidden_layers=3), "missing: model.layers.2"),
    "fewer layers": (lambda f: config(f, num_hidden_layers=1), "not used: model.layers.1"),
    "another vocabulary": (lambda f: config(f, vocab_size=800), "shape of model.embed_tokens.weight"),
    "a tensor too many": (lambda f: weights(f, lambda s: s.update(extra=np.ones(2, np.float32))), "not used: extra"),
    "cut weights": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:5000]),
        "not a whole safetensors file",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer.json"),
    "a broken tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), "the tokenizer could not be read"),
}


def commands(model, place):
    return {
        "run": [
            "launch/run.py",
            "--config=configs/hotpotqa.py:smoke",
            f"--config.system.language_model.model={model}",
            f"--workdir={place}/run",
        ],
        "serve": ["launch/serve.py", f"--model={model}", "--port=0"],
        "export": ["launch/export.py", f"--model={model}", f"--to={place}/exported"],
    }


@pytest.mark.parametrize("kind", BROKEN)
def test_a_model_is_refused_while_it_is_loaded(tmp_path, kind):
    change, words = BROKEN[kind]
    model = tmp_path / "model"
    export(resolve("random:0"), model)
    change(model)
    for name, command in commands(model, tmp_path).items():
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(
            [sys.executable, *command],
            check=False,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        said = done.stderr.strip().splitlines()
        assert done.returncode == 1, (name, done)
        assert words in done.stderr and "Traceback" not in done.stderr, (name, done.stderr)
        assert [line for line in said if line.startswith("error: ")] and len(said) <= 3, (name, done.stderr)
    assert not (tmp_path / "exported").exists()
