import dataclasses
import json

import jax
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file

from optimas_jax.checkpoints.export import export
from optimas_jax.checkpoints.peft import CONFIG, WEIGHTS, AdapterError, read_adapter, write_adapter
from optimas_jax.checkpoints.sources import resolve
from optimas_jax.checkpoints.weights import load_config, load_params
from optimas_jax.models.backbone import Network, init_lora
from optimas_jax.models.config import BackboneConfig, LoraConfig
from optimas_jax.models.forward import forward

BASE: BackboneConfig = tiny.CONFIG
LORAS = [
    LoraConfig(rank=4, alpha=8.0),
    LoraConfig(rank=2, alpha=3.0, targets=("q", "v")),
    LoraConfig(rank=3, alpha=3.0, last_layers=2),
]


def random_adapter(config=LORAS[0], seed=1):
    return tiny.random_lora(init_lora(BASE, config, jax.random.key(0)), seed)


def written(folder, config=LORAS[0], seed=1):
    return folder / write_adapter(folder, BASE, "hf:org/base", config, random_adapter(config, seed))


def copied(folder, **changes):
    """An adapter under a name that is no digest, with a changed description."""
    place = written(folder).rename(folder / "changed")
    described = json.loads((place / CONFIG).read_text())
    (place / CONFIG).write_text(json.dumps({**described, **changes}))
    return place


@pytest.mark.parametrize("config", LORAS)
def test_adapters_come_back_as_they_were_written(tmp_path, config):
    read, params = read_adapter(written(tmp_path, config), BASE)
    assert read == config
    jax.tree.map(np.testing.assert_array_equal, params, random_adapter(config))


def test_the_layout_is_that_of_peft(tmp_path):
    folder = written(tmp_path)
    tensors = load_file(folder / WEIGHTS)
    name = "base_model.model.model.layers.1.mlp.down_proj"
    assert tensors[f"{name}.lora_A.weight"].shape == (4, BASE.mlp_dim)
    assert tensors[f"{name}.lora_B.weight"].shape == (BASE.embed_dim, 4)
    assert len(tensors) == BASE.num_layers * 7 * 2
    described = json.loads((folder / CONFIG).read_text())
    assert (described["peft_type"], described["r"], described["lora_alpha"]) == ("LORA", 4, 8.0)
    assert described["base_model_name_or_path"] == "hf:org/base"
    assert set(described["target_modules"]) == {f"{n}_proj" for n in ("q", "k", "v", "o", "gate", "up", "down")}
    assert described["layers_to_transform"] is None
    upper = json.loads((written(tmp_path, LORAS[2]) / CONFIG).read_text())
    assert upper["layers_to_transform"] == [1, 2]


def test_a_folder_is_named_by_what_is_in_it(tmp_path):
    assert written(tmp_path) == written(tmp_path)
    assert len({written(tmp_path).name, written(tmp_path, seed=2).name, written(tmp_path, LORAS[1]).name}) == 3
    assert len(list(tmp_path.iterdir())) == 3  # and nothing half-written beside them


def test_root_scaled_adapters_are_read(tmp_path):
    config, _ = read_adapter(copied(tmp_path, use_rslora=True), BASE)
    np.testing.assert_allclose(config.scale, 8.0 / 4**0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "use_dora = True is not supported"),
        ({"bias": "all"}, "bias = 'all' is not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 2}}, "by the rank 2 of"),
        ({"rank_pattern": {"q_proj": 0}}, r"rank_pattern = .*greater than or equal to 1"),
        ({"peft_type": "IA3"}, "does not describe a LoRA"),
        ({"r": None}, "has r = None: Input should be a valid integer"),
        ({"r": 2}, r"expected floating point .*by the rank 2"),
        ({"r": True}, "has r = True"),
        ({"lora_alpha": float("nan")}, "has lora_alpha = nan: Input should be a finite number"),
        ({"lora_alpha": 1e300}, "is too large"),
        ({"target_modules": None}, "has target_modules = None"),
        ({"target_modules": "q_proj("}, "cannot be read"),
        ({"target_modules": ["q_proj"]}, r"has 'base_model.*which adapter_config.json does not name"),
        ({"target_modules": ["c_attn"]}, r"has 'base_model.*which adapter_config.json does not name"),
        ({"layers_to_transform": [0]}, r"which adapter_config.json does not name"),
        ({"exclude_modules": ["q_proj"]}, r"q_proj.*which adapter_config.json does not name"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights = 'pissa_niter_4' is not supported"),
        ({"init_lora_weights": "of next year"}, "init_lora_weights = 'of next year' is not supported"),
        ({"init_lora_weights": ["x"]}, "init_lora_weights"),
        ({"meaning_of_next_year": 1}, "meaning_of_next_year = 1 is not supported"),
        ({"megatron_config": {"x": 1}}, "megatron_config"),
        ({"use_bdlora": {"nblocks": 2}}, "use_bdlora"),
    ],
)
def test_what_is_not_computed_here_is_refused(tmp_path, change, message):
    with pytest.raises(AdapterError, match=message):
        read_adapter(copied(tmp_path, **change), BASE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name, value: {name: value[:, :8]}, "the widths of this base"),
        (lambda name, value: {name: value[:, 0]}, "the widths of this base"),
        (lambda name, value: {}, "1 matrices are missing that adapter_config.json promises"),
        (lambda name, value: {name: np.full_like(value, np.nan)}, "not finite"),
        (lambda name, value: {name: np.full_like(value, np.inf)}, "not finite"),
        (lambda name, value: {name: value.astype(np.int8)}, "is int8"),
        (lambda name, value: {name: value, name.replace(".0.", ".7."): value}, "this base has 3 layers"),
        (lambda name, value: {name: value, name.replace("lora_A", "lora_magnitude_vector"): value}, "magnitude"),
        (lambda name, value: {name: value, name.replace(".lora_A.weight", ".base_layer.bias"): value}, "base_layer"),
    ],
)
def test_matrices_that_do_not_fit_are_named(tmp_path, change, message):
    folder = copied(tmp_path)
    tensors, name = load_file(folder / WEIGHTS), "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    value = tensors.pop(name)
    save_file({**tensors, **change(name, value)}, folder / WEIGHTS)
    with pytest.raises(AdapterError, match=message):
        read_adapter(folder, BASE)


def test_a_digest_is_the_content(tmp_path):
    folder = written(tmp_path)
    read_adapter(folder, BASE)
    tensors = load_file(folder / WEIGHTS)
    save_file({name: np.zeros_like(value) for name, value in tensors.items()}, folder / WEIGHTS, {"format": "pt"})
    with pytest.raises(AdapterError, match="holds something else, of digest"):
        read_adapter(folder, BASE)
    read_adapter(folder.rename(tmp_path / "zeros"), BASE)


def test_damaged_adapters_are_named(tmp_path):
    with pytest.raises(AdapterError, match="is not an adapter"):
        read_adapter(tmp_path / "absent", BASE)
    folder = written(tmp_path)
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AdapterError, match="not a whole safetensors file"):
        read_adapter(folder, BASE)
    (folder / WEIGHTS).unlink()
    with pytest.raises(AdapterError, match="not a whole safetensors file"):
        read_adapter(folder, BASE)
    (folder / CONFIG).write_text("{")
    with pytest.raises(AdapterError, match="is damaged"):
        read_adapter(folder, BASE)


def test_other_modules_and_missing_layers_are_named(tmp_path):
    folder = copied(tmp_path)
    tensors = load_file(folder / WEIGHTS)
    save_file({**tensors, "base_model.model.lm_head.lora_A.weight": np.ones((4, 4))}, folder / WEIGHTS)
    with pytest.raises(AdapterError, match=r"lm_head.*can be the modules q_proj"):
        read_adapter(folder, BASE)
    save_file({name: value for name, value in tensors.items() if ".1." not in name}, folder / WEIGHTS)
    with pytest.raises(AdapterError, match=r"14 matrices are missing.* the first is .*layers\.1\.self_attn\.q_proj"):
        read_adapter(folder, BASE)
    with pytest.raises(AdapterError, match="made for another base"):
        read_adapter(written(tmp_path, LORAS[1]), dataclasses.replace(BASE, num_layers=4))


def test_a_merged_export_gives_what_the_adapter_gives(tmp_path):
    source = resolve("random:0")
    config = load_config(source)
    lora = LORAS[0]
    lora_params = tiny.random_lora(init_lora(config, lora, jax.random.key(0)))
    name = write_adapter(tmp_path, config, "random:0", lora, lora_params)
    export(source, tmp_path / "merged", tmp_path / name)
    merged = resolve(str(tmp_path / "merged"))
    network = Network(config, tiny.F32)
    flat = tiny.plain(range(5, 40))
    expected = forward(network, load_params(source, config, tiny.F32), *flat, lora, lora_params)
    outputs = forward(network, load_params(merged, load_config(merged), tiny.F32), *flat)
    np.testing.assert_allclose(outputs, expected, atol=1e-4)
