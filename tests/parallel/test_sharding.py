import dataclasses

import jax
import numpy as np
import pytest
import tiny
from jax.sharding import PartitionSpec as P

from optimas_jax.engine.sampler import SampleRequest
from optimas_jax.learn.batches import make_batch
from optimas_jax.learn.config import LossConfig
from optimas_jax.learn.reward_model import RewardFunctions
from optimas_jax.learn.train_state import init_state, init_trainable
from optimas_jax.models.backbone import abstract_params, init_lora
from optimas_jax.models.flat import place_flat
from optimas_jax.models.lora import merge_lora
from optimas_jax.parallel.mesh import DATA, MeshConfig, make_mesh
from optimas_jax.parallel.sharding import param_names, place_rows, replicate, shardings

MESHES = [(1, 1), (8, 1), (4, 2), (2, 2)]


def groups(count=20):
    rng = np.random.default_rng(0)
    return [tiny.random_group(rng, component=i % 2) for i in range(count)]


def place_batch(batch, mesh):
    return replicate(batch._replace(flat=None), mesh)._replace(flat=place_flat(batch.flat, mesh))


def train_and_score(shape, layerwise):
    """Loss, updated adapters and scores on a mesh of this shape, from the same start and the same rows."""
    mesh = make_mesh(MeshConfig(*shape))
    network, params = tiny.model(tiny.SHALLOW, dataclasses.replace(tiny.F32, layerwise=layerwise))
    params = jax.device_put(params, shardings(params, mesh))
    functions = RewardFunctions(network, tiny.LORA, LossConfig(), tiny.OPTIMIZER)
    trainable = init_trainable(tiny.SHALLOW, tiny.LORA, 2, jax.random.key(0))
    trainable["lora"] = tiny.random_lora(trainable["lora"])
    state = replicate(init_state(trainable, tiny.OPTIMIZER), mesh)
    batch, tiles = (
        place_batch(make_batch(groups(), candidates=4, pad_id=0, tiled=tiled, tokens=1024), mesh)
        for tiled in (False, True)
    )
    features = functions.features(params, tiles.flat)
    merged = merge_lora(params, state.trainable["lora"], tiny.LORA.scale)
    scores = functions.score(merged, state.trainable["head"], tiles, features)
    state, metrics = functions.train_step(state, params, [(batch, features)], 1e-3)
    assert mesh.size == 1 or len(params["layers"][0]["up"]["weight"].sharding.device_set) == mesh.size
    return jax.device_get((metrics["loss"], state.trainable, scores))


@pytest.fixture(scope="module")
def reference():
    return train_and_score((1, 1), layerwise=True)


@pytest.mark.parametrize(
    ("shape", "layerwise"),
    [
        *(pytest.param(shape, False, marks=[pytest.mark.long] * (shape in ((8, 1), (2, 2)))) for shape in MESHES),
        pytest.param(MESHES[1], True, marks=pytest.mark.long),
    ],
)
def test_every_mesh_gives_the_same_step(shape, layerwise, reference):
    loss, trainable, scores = train_and_score(shape, layerwise)
    np.testing.assert_allclose(loss, reference[0], rtol=1e-5)
    np.testing.assert_allclose(scores, reference[2], atol=1e-4)
    # Adam's first step is the sign of the gradient: compare where the gradient is not noise
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2.1e-3), trainable, reference[1])
    moved = [np.abs(a - b).mean() for a, b in zip(*map(jax.tree.leaves, (trainable, reference[1])), strict=True)]
    assert np.mean(moved) < 1e-4


@pytest.mark.parametrize("shape", [(8, 1), (4, 2)])
def test_sampling_on_a_mesh_gives_the_same_tokens(shape):
    plain = tiny.sampler()
    mesh = make_mesh(MeshConfig(*shape))
    params = jax.device_put(plain.params, shardings(plain.params, mesh))
    sharded = dataclasses.replace(plain, params=params, mesh=mesh)
    requests = [SampleRequest(tuple(range(1, 40 + i)), 6, temperature=float(i % 2), seed=i) for i in range(5)]
    for mine, theirs in zip(sharded.generate(requests), plain.generate(requests), strict=True):
        assert mine.ids == theirs.ids
        np.testing.assert_allclose(mine.logprobs, theirs.logprobs, atol=1e-4)


@pytest.mark.parametrize("config", [tiny.CONFIG, dataclasses.replace(tiny.CONFIG, tied_embeddings=True)])
def test_every_parameter_has_a_rule(config):
    mesh = make_mesh(MeshConfig(4, 2))
    tree = {
        **abstract_params(config, tiny.F32),
        "lora": init_lora(config, tiny.LORA, jax.random.key(0)),
        "head": {"kernel": np.zeros((64, 5))},
    }
    specs = dict(zip(param_names(tree), [s.spec for s in jax.tree.leaves(shardings(tree, mesh))], strict=True))
    assert specs["layers/0/q/weight"] == P("model", "data")
    assert specs["layers/2/down/weight"] == P("data", "model")
    assert specs["layers/1/mlp_norm/scale"] == P()
    assert specs["lora/layers/1/o/lora_a"] == P("model", None)
    assert specs["head/kernel"] == P()


def test_parameters_without_a_rule_or_with_a_remainder_are_all_named():
    mesh = make_mesh(MeshConfig(4, 2))
    tree = {"new": np.zeros(3), "layers": {0: {"q": {"weight": np.zeros((4, 6))}}}}
    with pytest.raises(ValueError, match=r"(?s)layers/0/q/weight: 6 is not a multiple of 4.*new: no rule matches"):
        shardings(tree, mesh)


def test_meshes_that_do_not_fit_are_refused():
    assert make_mesh(MeshConfig()).shape[DATA] == 8
    assert make_mesh(MeshConfig(0, 2)).shape[DATA] == 4
    assert make_mesh(MeshConfig(1, 1)).size == 1
    for shape in ((16, 1), (0, 3), (8, 2), (1, 0)):
        with pytest.raises(ValueError, match="does not fit 8 devices"):
            make_mesh(MeshConfig(*shape))


def test_rows_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"6 rows .x. do not divide among 4 devices"):
        place_rows({"x": np.zeros((6, 2))}, make_mesh(MeshConfig(4, 2)), ("x",))
