"""Logits by transformers and PEFT on torch, for ``third_party/check_adapters.py``. Runs in the peers' environment.

python peft_peer.py '{"base": FOLDER, "adapter": FOLDER or null, "make": FOLDER or null, "prompts": [[ids], ...],
                      "out": FILE.npz}'

``adapter`` is loaded onto the base; ``make`` makes a random one there first and saves it as PEFT does.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import peft
import torch
import transformers


def main(asked: dict) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(asked["base"], dtype=torch.float32).eval()
    if asked["make"]:
        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        config = peft.LoraConfig(r=5, lora_alpha=7, target_modules=targets, task_type="CAUSAL_LM")
        model = peft.get_peft_model(model, config)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, value in model.named_parameters():
                if "lora_B" in name:  # A is random already
                    value.copy_(0.01 * torch.randn(value.shape, generator=generator))
        model.save_pretrained(asked["make"])
    elif asked["adapter"]:
        model = peft.PeftModel.from_pretrained(model, asked["adapter"])
    model.double().eval()  # exact to what float32 can tell apart: its own rounding is up to 2e-4 here
    with torch.no_grad():
        logits = {str(n): model(torch.tensor([ids])).logits[0].numpy() for n, ids in enumerate(asked["prompts"])}
    np.savez(asked["out"], **logits)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
