"""GGUF files: every stored type, every architecture, and what is said of files that are not whole."""

import functools
import hashlib
import json
import os
import shutil
from pathlib import Path

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from gguf_files import WIDE, WIDE_SHAPES, wide, write

from optimas_jax.checkpoints.gguf import GGUF_TYPES, read_gguf
from optimas_jax.checkpoints.sources import WeightsError, resolve
from optimas_jax.checkpoints.tokenizer import load_tokenizer
from optimas_jax.checkpoints.weights import load_config, load_params, params_from_tensors
from optimas_jax.models.backbone import Network, merge_model
from optimas_jax.models.config import config_from_gguf, config_from_hf
from optimas_jax.models.forward import forward
from optimas_jax.parallel.platform import Compute

GOLDEN = Path(__file__).parents[1] / "golden"
F32 = Compute(jnp.dtype(jnp.float32), "tiled")
LLAMA_CPP = np.load(GOLDEN / "gguf_types.npz")
TYPES_OF_LLAMA_CPP = [name.removeprefix("logits/") for name in LLAMA_CPP.files if name.startswith("logits/")]


def load(path: Path):
    source = resolve(str(path))
    return load_params(source, load_config(source), F32)


def params_of(hf: dict, stored: dict[str, np.ndarray]):
    tensors = {name: functools.partial(np.asarray, value) for name, value in stored.items()}
    return params_from_tensors(tensors, config_from_hf(hf), F32, where="expected")


def assert_equal(left, right) -> None:
    jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.mark.parametrize("kind", GGUF_TYPES)
def test_every_type_is_dequantised_in_place(tmp_path, kind):
    stored, kinds, expected = wide(kind)
    for values in expected.values():
        assert np.isfinite(values).all()
        assert 0.01 < values.std() < 2
    path = write(tmp_path / "model.gguf", WIDE, stored, kinds)
    assert {tensor.kind for tensor in read_gguf(path).tensors.values()} == {kind, "F32"}
    assert_equal(load(path), params_of(WIDE, expected))


@pytest.mark.parametrize("kind", TYPES_OF_LLAMA_CPP)
def test_logits_of_every_type_are_llama_cpps(tmp_path, kind):
    """llama.cpp rounds activations to 8 bits before most products, hence the tolerance; its file had these bytes."""
    stored, kinds, _ = wide(kind)
    path = write(tmp_path / "model.gguf", WIDE, stored, kinds)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == str(LLAMA_CPP[f"sha256/{kind}"])
    network = Network(load_config(resolve(str(path))), F32)
    params, expected = load(path), LLAMA_CPP[f"logits/{kind}"]
    hidden = forward(network, params, *tiny.plain(LLAMA_CPP["input_ids"].tolist(), tiled=True))
    logits = merge_model(network, params).logits(hidden[: len(expected)])
    np.testing.assert_allclose(logits, expected, rtol=0, atol=0.15)


def test_every_type_that_gguf_can_dequantise_is_read():
    known = {kind.name for kind in gguf.quants._type_traits}
    assert set(GGUF_TYPES) == {"F32", "F16", *known}


@pytest.mark.parametrize("name", ["llama", "llama31", "qwen2", "qwen2_tied", "qwen3", "qwen3_tied"])
def test_every_architecture_loads_as_from_its_folder(tmp_path, name):
    """Interleaved q and k rows, biases, q and k norms, RoPE divisors and tied embeddings."""
    golden = np.load(GOLDEN / f"backbone_{name}.npz")
    hf = json.loads(str(golden["config"]))
    stored = {key[8:]: golden[key].astype(np.float32) for key in golden.files if key.startswith("weights/")}
    path = write(tmp_path / "model.gguf", hf, stored)
    expected, config = config_from_hf(hf), load_config(resolve(str(path)))
    if expected.rope_divisors is not None:
        np.testing.assert_allclose(config.rope_divisors, expected.rope_divisors, rtol=1e-6)
    for field in ("architecture", "vocab_size", "num_layers", "head_dim", "rope_theta", "tied_embeddings", "qk_norm"):
        assert getattr(config, field) == getattr(expected, field)
    assert_equal(load(path), params_of(hf, stored))


@pytest.fixture
def split(tmp_path) -> tuple[Path, dict[str, np.ndarray]]:
    """The first of four files of a model of eleven tensors, and the tensors."""
    stored, _, _ = wide("F32")
    path = write(tmp_path / "model.gguf", WIDE, stored, split_max_tensors=3)
    assert path.name == "model-00001-of-00004.gguf"
    return path, stored


def test_a_split_file_loads_like_a_whole_one(split):
    path, stored = split
    assert_equal(load(path), params_of(WIDE, stored))


def test_split_files_that_do_not_belong_together_are_refused(split):
    path, _ = split
    second, third, fourth = (path.with_name(f"model-0000{number}-of-00004.gguf") for number in (2, 3, 4))
    with pytest.raises(WeightsError, match=r"number 1 of 4, counted from 0: give the first, model-00001-of-00004"):
        load(second)
    content = third.read_bytes()
    third.unlink()
    with pytest.raises(WeightsError, match=r"first of 4 files, of which model-00003-of-00004\.gguf is missing"):
        load(path)
    third.write_bytes(fourth.read_bytes())
    with pytest.raises(WeightsError, match=r"model-00003-of-00004\.gguf is not number 2 of 4, counted from 0"):
        load(path)
    third.write_bytes(content[:-1])
    with pytest.raises(WeightsError, match=r"ends at byte \d+, but the file at byte"):
        load(path)
    third.write_bytes(content)
    with pytest.raises(WeightsError, match=r"must be called NAME-00001-of-00004\.gguf"):
        load(path.rename(path.with_name("model.gguf")))


@pytest.mark.parametrize(("count", "number"), [("2", 0), (2, "0"), (True, 0)])
def test_numbers_of_files_that_are_none_are_refused(tmp_path, count, number):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    for key, value in {"split.count": count, "split.no": number}.items():
        writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    writer.add_tensor("t", np.zeros(2, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(WeightsError, match=r"its split\.count is .* and its split\.no .*: expected whole numbers"):
        load(tmp_path / "model.gguf")


def test_a_tensor_under_an_unknown_name_is_reported(tmp_path):
    stored = {name: np.zeros(shape, np.float32) for name, shape in WIDE_SHAPES.items()}
    del stored["model.norm.weight"]
    path = write(tmp_path / "model.gguf", {**WIDE, "model_type": "qwen2"}, stored)
    with pytest.raises(WeightsError) as error:
        load(path)
    assert "does not fit qwen2 (4 problems)" in str(error.value)
    assert "missing: model.norm.weight" in str(error.value)
    assert "missing: model.layers.0.self_attn.q_proj.bias" in str(error.value)


def test_q_rows_that_are_no_whole_heads_are_reported(tmp_path):
    stored = {name: np.zeros(shape, np.float32) for name, shape in WIDE_SHAPES.items()}
    stored["model.layers.0.self_attn.q_proj.weight"] = np.zeros((260, 256), np.float32)
    with pytest.raises(WeightsError, match=r"shape of .*q_proj\.weight: \(260, 256\), expected \(256, 256\)"):
        load(write(tmp_path / "model.gguf", WIDE, stored))


def test_the_reader_agrees_with_gguf_on_metadata(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_array("strings", ["a", "", "é 日本"])
    writer.add_array("integers", [1, -2, 3])
    writer.add_array("nested", [[1, 2], [3]])
    writer.add_bool("flag", True)
    writer.add_float64("number", 0.1)
    writer.add_uint64("large", 2**63)
    writer.add_custom_alignment(64)
    writer.add_tensor("t", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = read_gguf(tmp_path / "model.gguf")
    assert file.metadata == {
        "general.architecture": "llama",
        "general.alignment": 64,
        "strings": ["a", "", "é 日本"],
        "integers": [1, -2, 3],
        "nested": [[1, 2], [3]],
        "flag": True,
        "number": 0.1,
        "large": 2**63,
    }
    np.testing.assert_array_equal(file.tensors["t"].read(), np.arange(6).reshape(2, 3))


def test_a_file_cut_anywhere_is_refused(tmp_path):
    golden = np.load(GOLDEN / "backbone_qwen2_tied.npz")
    stored = {key[8:]: golden[key].astype(np.float32) for key in golden.files if key.startswith("weights/")}
    path = write(tmp_path / "model.gguf", json.loads(str(golden["config"])), stored)
    size = path.stat().st_size
    assert size % gguf.GGUF_DEFAULT_ALIGNMENT == 0
    for kept in [size - 1, *range(size - 1000, 3000, -1000), *range(3000, -1, -7), 0]:
        os.truncate(path, kept)
        with pytest.raises(WeightsError, match=r"model\.gguf cannot be read as GGUF: .*fetch it again"):
            load(path)


@pytest.mark.embedded
def test_the_embedded_file_cut_anywhere_is_refused(tmp_path, embedded_gguf):
    path = Path(shutil.copy(embedded_gguf, tmp_path / "cut.gguf"))
    source, config = resolve(str(path)), load_config(resolve(str(embedded_gguf)))
    size = path.stat().st_size
    for kept in (size - 1, size // 2, 3_000_000, 2_000_000, 1_000_000, 50_000, 1000, 100, 24, 23, 4, 3, 0):
        os.truncate(path, kept)
        for read in (
            lambda: load_config(source),
            lambda: load_params(source, config, F32),
            lambda: load_tokenizer(source),
        ):
            with pytest.raises(WeightsError, match=rf"cut\.gguf cannot be read as GGUF: .*(byte {kept}\b|empty)"):
                read()


def header(tmp_path: Path, *tensors: tuple[str, list[int], int]) -> Path:
    """A GGUF file of tensors (name, dimensions as in the file, number of the type) without metadata and data."""
    content = b"GGUF" + np.uint32(3).tobytes() + np.array([len(tensors), 0], np.uint64).tobytes()
    for name, dims, kind in tensors:
        content += np.uint64(len(name)).tobytes() + name.encode() + np.uint32(len(dims)).tobytes()
        content += np.array(dims, np.uint64).tobytes() + np.uint32(kind).tobytes() + np.uint64(0).tobytes()
    (tmp_path / "model.gguf").write_bytes(content + bytes(4096))
    return tmp_path / "model.gguf"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            [("a", [256], 15), ("b", [256], 15), ("c", [32], 24)],
            r"tensors of type I8, Q8_K; read are F32, F16, .*Q6_K",
        ),
        ([("a", [32], 999)], r"tensors of type number 999; read are"),
        ([("a", [33], 8)], r"tensor a has rows of 33 values, not a multiple of Q8_0's block of 32"),
        ([("a", [2] * 5, 0)], r"tensor a has 5 dimensions; the format allows 4"),
        ([("a", [2**62, 2**62], 0)], r"tensor a ends at byte \d+, but the file at byte"),
        ([("a", [2], 0), ("a", [2], 0)], r"tensor a is in it twice"),
        ([("a", [2], 0)], r"has general\.architecture None; read are llama"),
    ],
)
def test_headers_that_do_not_fit_are_refused(tmp_path, tensors, message):
    with pytest.raises(WeightsError, match=message) as caught:
        load_config(resolve(str(header(tmp_path, *tensors))))
    assert ("fetch it again" in str(caught.value)) != ("read are" in message)  # not where the file is whole


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GGML" + bytes(100), "does not start with the four letters GGUF"),
        (b"GGUF" + np.uint32(1).tobytes() + bytes(100), "GGUF version 1; read are 2, 3"),
        (b"GGUF" + np.array([3], ">u4").tobytes() + bytes(100), "GGUF version 50331648"),
        (b"GGUF" + np.uint32(3).tobytes() + b"\xff" * 100, "header ends beyond byte"),
        (b"GGUF" + np.uint32(3).tobytes() + np.array([0, 1, 1], np.uint64).tobytes() + b"\xff" * 20, "utf-8"),
        (b"GGUF" + np.uint32(3).tobytes() + np.array([0, 1, 0, 99], np.uint64).tobytes(), "unknown type 99"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        load_config(resolve(str(tmp_path / "model.gguf")))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"rope.scaling.factor": 2.0}, 2.0),
        ({"rope.scale_linear": 4.0}, 4.0),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}, 8.0),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 8.0}, None),
        ({"rope.scaling.type": "linear"}, None),
        ({"rope.scaling.factor": 0.0}, None),
        ({"rope.scaling.type": "yarn", "rope.scaling.factor": 8.0}, "RoPE scaling 'yarn'"),
        ({"rope.scaling.type": "longrope"}, "RoPE scaling 'longrope'"),
        ({"rope.scaling.factor": -1.0}, "factor of -1.0"),
        ({"rope.scaling.attn_factor": 1.5}, "attn_factor"),
    ],
)
def test_rope_is_scaled_as_llama_cpp_scales_it(fields, expected):
    """A factor without a type is linear, also under its older name."""
    sizes = {"embedding_length": 64, "feed_forward_length": 96, "block_count": 1, "context_length": 128}
    sizes |= {"attention.head_count": 4, "attention.layer_norm_rms_epsilon": 1e-5, "vocab_size": 32, **fields}
    metadata = {"general.architecture": "llama", **{f"llama.{name}": value for name, value in sizes.items()}}
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            config_from_gguf(metadata, tied_embeddings=True)
    else:
        divisors = config_from_gguf(metadata, tied_embeddings=True).rope_divisors
        assert divisors == (None if expected is None else (expected,) * 8)
