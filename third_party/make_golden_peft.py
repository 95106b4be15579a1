"""Makes ``tests/golden/peft_kinds.npz``: adapters of many kinds of configuration as PEFT saves them, with its logits.

python third_party/make_golden_peft.py [--python=third_party/peers/.venv/bin/python]

Needs the peers' environment (``third_party/peers/install.sh``). The base is a tiny random Qwen2, which has biases and a
head of its own. Files are stored as their bytes under ``KIND/FILE``, those of the base under ``base/FILE``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from optimas_jax.checkpoints.sources import resolve
from optimas_jax.checkpoints.tokenizer import load_tokenizer

HERE = Path(__file__).parent
CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "vocab_size": 768,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "dtype": "float32",
}
IDS = [65, 32, 7, 8, 300, 301, 12, 44, 90, 91, 7, 8, 500]  # with the tokens that activate the kind "activated"


def write_base(folder: Path) -> None:
    """Writes a Hugging Face folder of random weights, with logits of some size."""
    dim, mlp, kv, vocab = (
        CONFIG[name] for name in ("hidden_size", "intermediate_size", "num_key_value_heads", "vocab_size")
    )
    kv *= dim // CONFIG["num_attention_heads"]
    rng = np.random.default_rng(0)

    def random(*shape: int, scale: float = 0.25) -> np.ndarray:
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    tensors = {
        "model.embed_tokens.weight": random(vocab, dim, scale=1.0),
        "lm_head.weight": random(vocab, dim, scale=0.4),
        "model.norm.weight": 1 + random(dim),
    }
    for layer in range(CONFIG["num_hidden_layers"]):
        stem = f"model.layers.{layer}"
        for name, out, into in (("q", dim, dim), ("k", kv, dim), ("v", kv, dim), ("o", dim, dim)):
            tensors[f"{stem}.self_attn.{name}_proj.weight"] = random(out, into)
            tensors |= {} if name == "o" else {f"{stem}.self_attn.{name}_proj.bias": random(out)}
        for name, out, into in (("gate", mlp, dim), ("up", mlp, dim), ("down", dim, mlp)):
            tensors[f"{stem}.mlp.{name}_proj.weight"] = random(out, into)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{stem}.{name}.weight"] = 1 + random(dim)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    load_tokenizer(resolve("random:0")).backend.save_pretrained(str(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default=str(HERE / "peers/.venv/bin/python"))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_base(folder / "base")
        message = json.dumps({"base": str(folder / "base"), "to": str(folder / "kinds"), "ids": IDS})
        subprocess.run([asked.python, str(HERE / "peers/peft_kinds.py"), message], check=True)  # noqa: S603
        arrays = {f"base/{path.name}": stored(path) for path in sorted((folder / "base").iterdir())}
        for kind in sorted((folder / "kinds").iterdir()):
            for name in ("adapter_config.json", "adapter_model.safetensors"):
                arrays[f"{kind.name}/{name}"] = stored(kind / name)
            if (kind / "logits.npy").exists():
                arrays[f"{kind.name}/logits"] = np.load(kind / "logits.npy")
        np.savez_compressed(HERE.parent / "tests/golden/peft_kinds.npz", ids=np.asarray(IDS), **arrays)


def stored(path: Path) -> np.ndarray:
    return np.frombuffer(path.read_bytes(), np.uint8)


if __name__ == "__main__":
    main()
