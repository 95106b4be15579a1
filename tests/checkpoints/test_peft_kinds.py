"""Adapters of PEFT of many kinds of configuration: its logits, or a refusal by name, wherever an adapter is used.

``third_party/make_golden_peft.py`` makes them with PEFT.
"""

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file

from optimas_jax.checkpoints.export import export
from optimas_jax.checkpoints.peft import AdapterError, read_adapter
from optimas_jax.checkpoints.sources import resolve
from optimas_jax.checkpoints.tokenizer import load_tokenizer
from optimas_jax.checkpoints.weights import load_config, load_params
from optimas_jax.engine.sampler import Sampler, SampleRequest
from optimas_jax.llm.base import CompletionRequest, Message
from optimas_jax.llm.local import EngineError, LocalCompleter
from optimas_jax.models.backbone import Network, merge_model
from optimas_jax.models.forward import forward
from optimas_jax.models.lora import merge_lora

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "peft_kinds.npz")
IDS = GOLDEN["ids"].tolist()
KINDS = sorted({name.partition("/")[0] for name in GOLDEN.files} - {"base", "ids"})
# Kind -> the field, or the part of a tensor's name, by which it is refused.
REFUSED = {
    "dora": "use_dora",
    "pissa": "init_lora_weights = 'pissa'",
    "pissa-niter": "init_lora_weights = 'pissa_niter_4'",
    "olora": "init_lora_weights = 'olora'",
    "bias-lora": "bias = 'lora_only'",
    "bias-all": "bias = 'all'",
    "lora-bias": "lora_bias",
    "saved-head": "modules_to_save",
    "adapted-head": "lm_head",
    "adapted-embedding": "embed_tokens",
    "new-tokens": "trainable_token_indices",
    "parameters": "target_parameters",
    "replicated-layers": "layer_replication",
    "activated": "alora_invocation_tokens",
    "kasa": "kasa_config",
    "monteclora": "monteclora_config",
    "block-diagonal": "use_bdlora",
}
# Fields of kinds that need more than a model to be made.
FIELDS = {
    "init_lora_weights": "corda",  # and "loftq", "lora_ga": whatever may change the base
    "use_qalora": True,
    "arrow_config": {"top_k": 3},
    "velora_config": {"num_groups": 2},
    "fan_in_fan_out": True,
    "megatron_config": {"hidden_size": 16},
    "lora_ga_weights": True,
}


def unpack(name, folder):
    folder.mkdir(parents=True)
    for key in GOLDEN.files:
        owner, _, file = key.partition("/")
        if owner == name and file != "logits":
            (folder / file).write_bytes(GOLDEN[key].tobytes())
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return resolve(str(unpack("base", tmp_path_factory.mktemp("peft") / "base")))


@pytest.fixture(scope="module")
def sampler(source):
    config = load_config(source)
    return Sampler(Network(config, tiny.F32), load_params(source, config, tiny.F32), load_tokenizer(source))


def logits(network, params, lora=None, lora_params=None):
    hidden = forward(network, params, *tiny.plain(IDS), lora, lora_params)[: len(IDS)]
    return np.asarray(merge_model(network, params).logits(hidden))


def test_there_are_enough_kinds():
    assert len(KINDS) >= 40 and set(REFUSED) <= set(KINDS)


TAKEN = sorted(set(KINDS) - set(REFUSED))
UNEVEN = ("rank-pattern", "low-q-high-up", "both-patterns-rslora")  # ranks, modules or scales differ


@pytest.mark.parametrize("kind", TAKEN)
def test_adapters_mean_what_peft_says(source, sampler, tmp_path, kind):
    """Read, and merged into an exported model."""
    folder, network = unpack(kind, tmp_path / "adapters" / kind), sampler.network
    lora, lora_params = read_adapter(folder, network.config)
    expected = GOLDEN[f"{kind}/logits"]
    here = logits(network, merge_lora(sampler.params, lora_params, lora.scale))
    np.testing.assert_allclose(here[:, ::8], expected, atol=1e-4)
    assert np.abs(logits(network, sampler.params)[:, ::8] - expected).max() > 0.1  # it does something
    export(source, tmp_path / "merged", folder)
    merged = resolve(str(tmp_path / "merged"))
    there = logits(network, load_params(merged, load_config(merged), tiny.F32))
    np.testing.assert_allclose(there[:, ::8], expected, atol=1e-4)


@pytest.mark.parametrize(
    "kind", [kind if kind in UNEVEN else pytest.param(kind, marks=pytest.mark.long) for kind in TAKEN]
)
def test_the_trainer_and_the_engine_compute_the_same(sampler, tmp_path, kind):
    """Beside the base's weights, where each kind is another program."""
    lora, lora_params = read_adapter(unpack(kind, tmp_path / kind), sampler.network.config)
    here = logits(sampler.network, sampler.params, lora, lora_params)
    np.testing.assert_allclose(here[:, ::8], GOLDEN[f"{kind}/logits"], atol=1e-4)
    sampler.adapters.load(kind, lora, lora_params)
    [sample] = sampler.generate([SampleRequest(tuple(IDS), 1, adapter=kind)])
    logprobs = here[-1] - np.log(np.exp(here[-1]).sum())
    assert sample.ids[0] == int(logprobs.argmax())
    np.testing.assert_allclose(sample.logprobs[0], logprobs.max(), atol=1e-4)


def refused(source, sampler, folder, name):
    """Asserts that training, merging, serving and evaluation refuse an adapter in the same words."""
    with pytest.raises(AdapterError) as caught:
        read_adapter(folder, sampler.network.config)
    assert name in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(AdapterError) as merging:
        export(source, folder.parent / "merged", folder)
    completer = LocalCompleter("m", lambda: sampler, folder.parent)
    request = CompletionRequest("m", (Message("text", "a"),), max_tokens=2, adapter=folder.name)
    with pytest.raises(EngineError) as serving:
        asyncio.run(completer.complete(request))
    completer.close()
    assert str(caught.value) == str(merging.value) == str(serving.value)
    assert not (folder.parent / "merged").exists()


@pytest.mark.parametrize("kind", sorted(REFUSED))
def test_adapters_of_another_meaning_are_refused_by_name(source, sampler, tmp_path, kind):
    refused(source, sampler, unpack(kind, tmp_path / kind), REFUSED[kind])


@pytest.mark.parametrize("field", FIELDS)
def test_fields_of_another_meaning_are_refused_by_name(source, sampler, tmp_path, field):
    folder = unpack("attention", tmp_path / "changed")
    described = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**described, field: FIELDS[field]}))
    refused(source, sampler, folder, field)


def test_kinds_are_as_peft_saved_them(tmp_path):
    """Ranks of a pattern are in the file, and its bfloat16 is."""
    tensors = load_file(unpack("rank-pattern", tmp_path / "a") / "adapter_model.safetensors")
    ranks = {name.split(".")[-3]: value.shape[0] for name, value in tensors.items() if name.endswith("lora_A.weight")}
    assert ranks["q_proj"] == 2 and ranks["k_proj"] == 4
    [dtype] = {
        value.dtype.name
        for value in load_file(unpack("bfloat16", tmp_path / "b") / "adapter_model.safetensors").values()
    }
    assert dtype == "bfloat16"
