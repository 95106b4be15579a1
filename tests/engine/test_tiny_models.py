"""Folders of every architecture, through the whole engine: text equals transformers' (third_party/make_golden.py)."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from optimas_jax.checkpoints.export import export
from optimas_jax.checkpoints.sources import resolve
from optimas_jax.checkpoints.tokenizer import load_tokenizer
from optimas_jax.checkpoints.weights import load_config, load_params
from optimas_jax.engine.sampler import Sampler, SampleRequest
from optimas_jax.models.backbone import Network
from optimas_jax.parallel.platform import Compute

GOLDEN = Path(__file__).parents[1] / "golden"
GREEDY = json.loads((GOLDEN / "tiny_greedy.json").read_text())
NEWEST = ("gemma3", "smollm3")
OTHERS = sorted(set(GREEDY) - set(NEWEST))  # with the slow tests: every model compiles its own programs
CHUNKED = Compute(jnp.dtype(jnp.float32), "chunked")


def folder(path: Path, name: str) -> Path:
    """The stored model as a Hugging Face folder, with a tokenizer whose end of answer the continuation does not use."""
    golden = np.load(GOLDEN / f"backbone_{name}.npz")
    path.mkdir()
    (path / "config.json").write_text(str(golden["config"]))
    stored = {key[8:]: golden[key] for key in golden.files if key.startswith("weights/")}
    save_file(stored, path / "model.safetensors")
    size = golden["logits"].shape[-1]
    unused = min(set(range(size)) - set(GREEDY[name]["ids"]))
    words = Tokenizer(models.WordLevel({f"t{index}": index for index in range(size)}, unk_token="t0"))
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    backend = PreTrainedTokenizerFast(tokenizer_object=words, eos_token=f"t{unused}", chat_template=template)
    backend.save_pretrained(str(path))
    return path


def sampler(path: Path, compute: Compute) -> Sampler:
    source = resolve(str(path))
    config = load_config(source)
    return Sampler(Network(config, compute), load_params(source, config, compute), load_tokenizer(source))


def request(prompt_ids: list[int], max_tokens: int) -> SampleRequest:
    return SampleRequest(tuple(prompt_ids), max_tokens=max_tokens, temperature=0.0)


@pytest.mark.parametrize("name", [*NEWEST, *(pytest.param(name, marks=pytest.mark.long) for name in OTHERS)])
def test_greedy_text_equals_transformers_with_and_without_a_kept_prefix(tmp_path, name):
    engine = sampler(folder(tmp_path / name, name), tiny.F32)
    prompt, expected = GREEDY[name]["prompt_ids"], GREEDY[name]["ids"]
    [kept] = engine.generate([request(prompt[:34], 1)])  # leaves two blocks of keys and values for the next ones
    assert len(kept.ids) == 1
    again, fresh = engine.generate([request(prompt, len(expected)), request(prompt[1:], 2)])
    assert list(again.ids) == expected
    assert len(fresh.ids) == 2


@pytest.mark.parametrize("name", ["gemma3", pytest.param("smollm3", marks=pytest.mark.long)])
def test_greedy_text_with_the_attention_of_other_platforms(tmp_path, name):
    prompt, expected = GREEDY[name]["prompt_ids"], GREEDY[name]["ids"]
    [answer] = sampler(folder(tmp_path / name, name), CHUNKED).generate([request(prompt, len(expected))])
    assert list(answer.ids) == expected


@pytest.mark.parametrize(
    "name", ["gemma3", *(pytest.param(name, marks=pytest.mark.long) for name in (*NEWEST[1:], *OTHERS))]
)
def test_an_export_of_a_folder_is_the_same_model(tmp_path, name):
    source = resolve(str(folder(tmp_path / name, name)))
    export(source, tmp_path / "export")
    again = resolve(str(tmp_path / "export"))
    assert load_config(again) == load_config(source)
    prompt, expected = GREEDY[name]["prompt_ids"], GREEDY[name]["ids"]
    [answer] = sampler(tmp_path / "export", tiny.F32).generate([request(prompt, len(expected))])
    assert list(answer.ids) == expected
