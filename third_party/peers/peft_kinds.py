"""Adapters of many kinds of configuration by PEFT, with their logits. Runs in the peers' environment.

python peft_kinds.py '{"base": FOLDER, "to": FOLDER, "ids": [ids]}'

Each kind becomes a folder as PEFT saves it. It is loaded again onto a fresh base for its logits, ``logits.npy``
[T, V / 8], of every eighth token: what an adapter means is what PEFT makes of its folder. A kind that this version
cannot make or load is printed; what there is of it is kept.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import peft
import torch
import transformers

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BLOCKS = {"nblocks": 2, "target_modules_bd_a": ["o_proj"], "target_modules_bd_b": ["q_proj"]}
KINDS = {
    # Plain LoRA, whatever it adapts and however it began.
    "all-seven": {},
    "attention": {"target_modules": ["q_proj", "v_proj"], "lora_alpha": 32},
    "mlp": {"target_modules": ["gate_proj", "up_proj", "down_proj"], "lora_alpha": 5},
    "all-linear": {"target_modules": "all-linear", "r": 3, "lora_alpha": 7},
    "rslora": {"use_rslora": True, "lora_alpha": 2},
    "fraction-alpha": {"lora_alpha": 0.5},
    "excluded": {"exclude_modules": ["o_proj", "layers.0.mlp.up_proj"]},
    "excluded-regex": {"exclude_modules": r".*\.[01]\.mlp\..*"},
    "last-layers": {"layers_to_transform": [2, 3]},
    "one-layer": {"layers_to_transform": 1},
    "two-layers": {"layers_to_transform": [1, 3]},
    "layers-pattern": {"layers_to_transform": [0, 2], "layers_pattern": "layers"},
    "regex": {"target_modules": r".*\.(1|2)\.self_attn\.(q|k)_proj"},
    "low-q-high-up": {"target_modules": r".*(\.[01]\.self_attn\.q_proj|\.[23]\.mlp\.up_proj)"},
    "whole-names": {"target_modules": ["model.layers.0.self_attn.q_proj", "model.layers.3.mlp.down_proj"]},
    "rank-pattern": {"rank_pattern": {"q_proj": 2, r"layers\.[23]\.mlp\.down_proj": 7}},
    "alpha-pattern": {"alpha_pattern": {"k_proj": 1.5, "model.layers.1.mlp.gate_proj": 20}},
    "both-patterns-rslora": {"rank_pattern": {"v_proj": 1}, "alpha_pattern": {"mlp.up_proj": 3}, "use_rslora": True},
    "bfloat16": {"dtype": "bfloat16"},
    "float16": {"dtype": "float16"},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "mica": {"init_lora_weights": "mica"},
    "eva": {"init_lora_weights": "eva"},
    "random-start": {"init_lora_weights": False},
    "dropout": {"lora_dropout": 0.3},
    # Another meaning.
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "pissa-niter": {"init_lora_weights": "pissa_niter_4"},
    "olora": {"init_lora_weights": "olora"},
    "bias-lora": {"bias": "lora_only"},
    "bias-all": {"bias": "all"},
    "lora-bias": {"lora_bias": True, "target_modules": ["q_proj", "k_proj"]},
    "saved-head": {"modules_to_save": ["lm_head"]},
    "adapted-head": {"target_modules": ["q_proj", "lm_head"]},
    "adapted-embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "new-tokens": {"trainable_token_indices": [3, 5]},
    "parameters": {"target_modules": ["k_proj"], "target_parameters": ["q_proj.weight"]},
    "replicated-layers": {"layer_replication": [[0, 3], [1, 4]]},
    "activated": {"alora_invocation_tokens": [7, 8]},
    "kasa": {"kasa_config": {}},
    "monteclora": {"monteclora_config": {}},
    "block-diagonal": {"target_modules": ["o_proj", "q_proj"], "use_bdlora": BLOCKS},
}


def main(asked: dict) -> None:
    warnings.simplefilter("ignore")
    for name, changes in KINDS.items():
        try:
            make(asked["base"], Path(asked["to"]) / name, asked["ids"], dict(changes))
            print(name)
        except Exception as error:
            print(f"{name}: not whole, {type(error).__name__}: {str(error).splitlines()[0][:150]}")


def base_model(folder: str) -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def make(base: str, folder: Path, ids: list[int], changes: dict) -> None:
    dtype = getattr(torch, changes.pop("dtype", "float32"))
    plain = {"r": 4, "lora_alpha": 8, "target_modules": ALL, "task_type": "CAUSAL_LM"}
    torch.manual_seed(0)
    model = peft.get_peft_model(base_model(base), peft.LoraConfig(**{**plain, **changes}))
    with torch.no_grad():  # as if it were trained
        for parameter in [value for key, value in model.named_parameters() if value.requires_grad or "lora_" in key]:
            parameter.add_(0.3 * torch.randn(parameter.shape))
    if dtype != torch.float32:
        model.to(dtype)
    model.save_pretrained(folder)
    loaded = peft.PeftModel.from_pretrained(base_model(base), str(folder)).double().eval()
    with torch.no_grad():
        logits = loaded(torch.tensor([ids])).logits[0].numpy()
    np.save(folder / "logits.npy", logits[:, ::8].astype(np.float32))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
