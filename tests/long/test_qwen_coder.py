"""A real model of half a billion weights in five GGUF types: tokens equal llama.cpp's, and greedy text torch's.

The file is Qwen2.5-Coder-0.5B-Instruct in Q4_K_M (491 MB): set OPTIMAS_JAX_QWEN to its path.
"""

import gzip
import json
import os
from pathlib import Path

import pytest

from optimas_jax.checkpoints.sources import resolve
from optimas_jax.checkpoints.tokenizer import load_tokenizer
from optimas_jax.checkpoints.weights import load_config, load_params
from optimas_jax.engine.sampler import Sampler, SampleRequest
from optimas_jax.models.backbone import Network
from optimas_jax.parallel.platform import default_compute

GOLDEN = Path(__file__).parents[1] / "golden"
FILE = os.environ.get("OPTIMAS_JAX_QWEN", "")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not FILE, reason="OPTIMAS_JAX_QWEN does not name the model's file"),
]
NEAR = 1e-3  # two logits that are so near may change places


def test_ids_of_a_thousand_strings_and_of_chats():
    stored = json.loads(gzip.decompress((GOLDEN / "qwen_coder_tokens.json.gz").read_bytes()))
    tokenizer = load_tokenizer(resolve(FILE))
    assert len(stored["strings"]) == 1000
    differ = [text for text, ids in zip(stored["strings"], stored["ids"], strict=True) if tokenizer.encode(text) != ids]
    assert not differ
    for chat in stored["chats"]:
        assert tokenizer.render_chat(chat["messages"]) == chat["text"]
        assert tokenizer.encode_chat(chat["messages"]) == chat["ids"]


def test_greedy_continuations():
    stored = json.loads((GOLDEN / "qwen_coder_greedy.json").read_text(encoding="utf-8"))
    source = resolve(FILE)
    config, compute, tokenizer = load_config(source), default_compute("cpu"), load_tokenizer(source)
    sampler = Sampler(Network(config, compute), load_params(source, config, compute), tokenizer)
    samples = sampler.generate([SampleRequest(tuple(case["prompt_ids"]), max_tokens=20) for case in stored])
    assert len(stored) == 20
    for case, sample in zip(stored, samples, strict=True):
        first = next((i for i, (a, b) in enumerate(zip(sample.ids, case["ids"], strict=False)) if a != b), None)
        assert first is None or case["margins"][first] < NEAR, (case["prompt"], tokenizer.decode(sample.ids))
        assert first is not None or len(sample.ids) == len(case["ids"])
