import errno
import gc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from optimas_jax.core.types import StopRun
from optimas_jax.learn.store import CheckpointError, CheckpointStore
from optimas_jax.parallel.mesh import MeshConfig, make_mesh
from optimas_jax.parallel.sharding import replicate
from optimas_jax.rewards.scorer import LocalReward

# Orbax drops coroutines when it gives up on arrays; Python warns when they are collected, here at the end of the test.
dropped_coroutines = pytest.mark.filterwarnings(
    "ignore:coroutine .* was never awaited:RuntimeWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


def trainable(seed=0, heads=3):
    """A small tree of adapters and heads, shaped as training makes them."""
    rng = np.random.default_rng(seed)
    shapes = {"lora_a": (16, 4), "lora_b": (4, 8)}
    adapters = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    return {
        "lora": {"layers": {3: {"q": adapters}}},
        "head": {"kernel": jnp.asarray(rng.normal(size=(16, heads)), jnp.float32)},
    }


def assert_equal(arrays, expected):
    assert jax.tree.structure(arrays) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, arrays, expected)


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "checkpoints")


def test_a_checkpoint_comes_back_bit_by_bit(store):
    store.save("a", trainable(1), {"history": [{"loss": 0.5}], "parent": None})
    assert store.metadata("a") == {"history": [{"loss": 0.5}], "parent": None}
    assert_equal(store.load("a", trainable(2)), trainable(1))


def test_what_was_never_saved_is_not_there(store):
    assert store.metadata("a") is None


def test_checkpoints_do_not_touch_each_other(store):
    store.save("a", trainable(1), {"n": 1})
    store.save("b", trainable(2), {"n": 2})
    assert (store.metadata("a"), store.metadata("b")) == ({"n": 1}, {"n": 2})
    assert_equal(store.load("a", trainable()), trainable(1))


def test_a_half_written_checkpoint_does_not_count_and_is_replaced(store):
    store.save("a", trainable(1), {"n": 1})
    (store.folder / "a" / "metadata.json").unlink()  # what a process killed between arrays and metadata leaves
    assert store.metadata("a") is None
    store.save("a", trainable(2), {"n": 2})
    assert store.metadata("a") == {"n": 2}
    assert_equal(store.load("a", trainable()), trainable(2))


@pytest.mark.parametrize(
    "content",
    [b'{"n": ', b"", b"\xff\xfe", b"[]", b"123", b"null", b"[" * 100_000, b'{"n": NaN}', b"\x00", b"9" * 5000],
)
def test_damaged_metadata_says_so(store, content):
    store.save("a", trainable(), {"n": 1})
    (store.folder / "a" / "metadata.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"metadata\.json is damaged .*it will be trained again"):
        store.metadata("a")


@pytest.mark.parametrize("change", [{"history": None}, {"groups": "7"}, {"alike": [1]}, {"base": ["x"]}])
def test_metadata_of_another_form_say_so(store, change):
    whole = {"groups": 7, "alike": 0, "history": [{"loss": 0.5}], "parent": None, "seed": 0}
    store.save("a", trainable(), whole)
    assert store.metadata("a", LocalReward) == whole
    store.save("a", trainable(), {**whole, **change})
    with pytest.raises(CheckpointError, match=rf"metadata\.json is damaged \({next(iter(change))}.*trained again"):
        store.metadata("a", LocalReward)


@dropped_coroutines
@pytest.mark.parametrize("damage", ["cut", "gone", "all gone"])
def test_damaged_arrays_say_so(store, damage):
    store.save("a", trainable(), {"n": 1})
    arrays = store.folder / "a" / "arrays"
    for file in [file for file in arrays.rglob("*") if file.is_file()]:
        if damage == "all gone" or "/d/" in file.as_posix():
            file.write_bytes(file.read_bytes()[:10]) if damage == "cut" else file.unlink()
    with pytest.raises(CheckpointError, match=r"cannot read the checkpoint .*/a/arrays .*it will be trained again"):
        store.load("a", trainable())
    gc.collect()


@dropped_coroutines
def test_arrays_of_another_shape_or_tree_say_so(store):
    store.save("a", trainable(), {"n": 1})
    for like in (trainable(heads=4), {"head": trainable()["head"]}, {**trainable(), "more": np.zeros(2, np.float32)}):
        with pytest.raises(CheckpointError, match=r"cannot read the checkpoint .*/a/arrays"):
            store.load("a", like)
    gc.collect()


@pytest.mark.parametrize(("saved_on", "loaded_on"), [((8, 1), (1, 1)), ((1, 1), (4, 2)), ((4, 2), (8, 1))])
def test_a_checkpoint_moves_to_another_mesh(store, saved_on, loaded_on):
    expected = trainable(1)
    store.save("a", replicate(expected, make_mesh(MeshConfig(*saved_on))), {})
    mesh = make_mesh(MeshConfig(*loaded_on))
    arrays = store.load("a", trainable(), NamedSharding(mesh, P()))
    assert_equal(jax.device_get(arrays), jax.device_get(expected))
    assert all(leaf.sharding.device_set == set(mesh.devices.flat) for leaf in jax.tree.leaves(arrays))


def test_arrays_cut_over_devices_are_saved_and_loaded_whole(store):
    mesh = make_mesh(MeshConfig(8, 1))
    cut = NamedSharding(mesh, P("data"))
    values = {"w": np.arange(32, dtype=np.float32).reshape(16, 2)}
    store.save("a", jax.device_put(values, cut), {})
    assert_equal(jax.device_get(store.load("a", values)), values)
    again = store.load("a", values, cut)["w"]
    assert [shard.data.shape for shard in again.addressable_shards] == [(2, 2)] * 8
    np.testing.assert_array_equal(again, values["w"])


@pytest.mark.parametrize(("target", "operation"), [(ocp.Checkpointer, "save"), (Path, "write_text"), (Path, "mkdir")])
def test_a_full_disk_says_so_and_leaves_no_checkpoint(store, monkeypatch, target, operation):
    monkeypatch.setattr(target, operation, full)
    with pytest.raises(CheckpointError, match=r"cannot write the checkpoint .*No space left.*same command again"):
        store.save("a", trainable(), {"n": 1})
    monkeypatch.undo()
    assert store.metadata("a") is None
    store.save("a", trainable(), {"n": 1})
    assert store.metadata("a") == {"n": 1}
    assert issubclass(CheckpointError, StopRun)


def test_a_disk_that_fills_up_under_the_arrays_says_so_too(store, monkeypatch):
    def fail(*args, **settings):  # what tensorstore raises
        raise ValueError("OUT_OF_RANGE: Failed writing: No space left on device [os_error_code='28']")

    monkeypatch.setattr(ocp.Checkpointer, "save", fail)
    with pytest.raises(CheckpointError, match=r"cannot write the checkpoint .*No space left"):
        store.save("a", trainable(), {"n": 1})
    assert store.metadata("a") is None
