"""Meshes of fake devices: each device computes its shard of a batch, and results are those of one device."""

import dataclasses
import math
import re

import jax
import numpy as np
import pytest
import tiny
from jax.sharding import PartitionSpec as P

from optimas_jax.engine.pool import LoadedModel, network_on
from optimas_jax.engine.sampler import SampleRequest
from optimas_jax.learn.batches import deal, make_batches
from optimas_jax.learn.config import LossConfig, PolicyLoss
from optimas_jax.learn.memory import compile_layer, layer_arguments
from optimas_jax.learn.policy_batch import Targets, make_policy_batch, sampled_tokens
from optimas_jax.learn.ppo import PolicyFunctions, init_policy
from optimas_jax.learn.reward_model import RewardFunctions
from optimas_jax.learn.train_state import apply_gradients, init_state, init_trainable
from optimas_jax.models.attention import divisible_heads
from optimas_jax.models.backbone import abstract_params, init_lora
from optimas_jax.parallel.mesh import DATA, MeshConfig, make_mesh
from optimas_jax.parallel.sharding import param_names, place, shardings

MESHES = [(8, 1), (1, 8), (4, 2), (2, 4), (3, 1), (5, 1), (6, 1)]
QUICK = [(4, 2)]
ON_MESHES = [pytest.param(shape, marks=[pytest.mark.long] * (shape not in QUICK)) for shape in MESHES]
GROUPS = [tiny.random_group(np.random.default_rng(index), component=index % 2) for index in range(20)]


def model_on(shape, attention="tiled"):
    """The tiny model on the first devices; one device for ``(1, 1)``."""
    mesh = make_mesh(MeshConfig(*shape), jax.devices()[: shape[0] * shape[1]])
    network, params = tiny.model(tiny.SHALLOW, dataclasses.replace(tiny.F32, attention=attention))
    return LoadedModel(network_on(mesh, network.config, network.compute), mesh, place(params, mesh), None)


def parts_of(model):
    """Indices of the groups of each shard."""
    return deal([group.length for group in GROUPS], model.shards)


def placement(tree):
    return [(leaf.sharding, leaf.ndim) for leaf in jax.tree.leaves(tree)]


def assert_placed_alike(before, tree):
    assert all(old.is_equivalent_to(new, ndim) for (old, ndim), (new, _) in zip(before, placement(tree), strict=True))


def reward_step(shape, attention="tiled"):
    """Loss, scores by group and trainable after a step of the local rewards."""
    model = model_on(shape, attention)
    functions = RewardFunctions(model.network, tiny.LORA, LossConfig(), tiny.OPTIMIZER)
    trainable = init_trainable(tiny.SHALLOW, tiny.LORA, 2, jax.random.key(0))
    trainable["lora"] = tiny.random_lora(trainable["lora"])
    state = place(init_state(trainable, tiny.OPTIMIZER), model.mesh)
    parts = parts_of(model)
    dealt = [[GROUPS[index] for index in part] for part in parts]
    batch = model.put(make_batches(dealt, candidates=4, pad_id=0, tiled=attention == "tiled"))
    features = functions.features(model.params, batch.flat)
    scores = np.asarray(functions.score(model.params, state.trainable["head"], batch, features))
    scores = scores if scores.ndim == 3 else scores[None]
    by_group = {
        index: row for part, rows in zip(parts, scores, strict=True) for index, row in zip(part, rows, strict=False)
    }
    before = placement(state)
    state, metrics = functions.train_step(state, model.params, [(batch, features)], 1e-3)
    assert_placed_alike(before, state)
    trained, compiled = jax.device_get((metrics["loss"], state.trainable)), apply_gradients._cache_size()
    functions.train_step(state, model.params, [(batch, features)], 1e-3)
    assert model.mesh.size == 1 or apply_gradients._cache_size() == compiled  # the second step is the same program
    return *trained, np.stack([by_group[index] for index in range(len(GROUPS))])


def policy_step(shape, algorithm):
    """Loss and trainable after a step of a policy."""
    model = model_on(shape)
    functions = PolicyFunctions(model.network, tiny.LORA, PolicyLoss(algorithm), tiny.OPTIMIZER)
    trainable = init_policy(tiny.SHALLOW, tiny.LORA, jax.random.key(0))
    trainable["lora"] = tiny.random_lora(trainable["lora"])
    state = place(init_state(trainable, tiny.OPTIMIZER), model.mesh)
    rng = np.random.default_rng(0)
    targets = [
        Targets(*rng.normal(size=(5, sampled_tokens(group))), *np.ones((2, sampled_tokens(group)))) for group in GROUPS
    ]
    dealt = [([GROUPS[i] for i in part], [targets[i] for i in part]) for part in parts_of(model)]
    tokens = max(sum(group.length for group in groups) for groups, _ in dealt)
    others = [groups for groups, _ in dealt]
    layouts = [make_policy_batch(*part, pad_id=0, tiled=True, tokens=tokens, others=others) for part in dealt]
    before = placement(state)
    state, metrics = functions.train_step(state, model.params, [[model.put(layouts)]], 1e-3)
    assert_placed_alike(before, state)
    return jax.device_get((metrics["loss"], state.trainable))


@pytest.fixture(scope="module")
def expected_reward_step():
    return reward_step((1, 1))


@pytest.mark.parametrize("attention", ["tiled", pytest.param("chunked", marks=pytest.mark.long)])
@pytest.mark.parametrize("shape", ON_MESHES)
def test_a_step_of_local_rewards_is_that_of_one_device(shape, attention, expected_reward_step):
    loss, trainable, scores = reward_step(shape, attention)
    expected_loss, expected_trainable, expected_scores = expected_reward_step
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), trainable, expected_trainable)


@pytest.mark.parametrize("algorithm", [pytest.param("ppo", marks=pytest.mark.long), "grpo"])
@pytest.mark.parametrize("shape", ON_MESHES)
def test_a_step_of_a_policy_is_that_of_one_device(shape, algorithm):
    (loss, trainable), (expected_loss, expected) = policy_step(shape, algorithm), policy_step((1, 1), algorithm)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), trainable, expected)


def sampler_on(shape):
    """The sampler of one device, and the same on a mesh."""
    plain = tiny.sampler()
    mesh = make_mesh(MeshConfig(*shape), jax.devices()[: shape[0] * shape[1]])
    network = network_on(mesh, plain.network.config, plain.network.compute)
    return plain, dataclasses.replace(plain, network=network, params=place(plain.params, mesh))


@pytest.mark.parametrize("adapter", ["", "tuned"])
@pytest.mark.parametrize("shape", [(2, 1), *(pytest.param((n, 1), marks=pytest.mark.long) for n in (3, 5, 8))])
def test_a_request_on_a_mesh_gets_the_same_bits_however_many_share_its_batch(shape, adapter):
    """Which requests meet in a batch depends on time, and what a run records must not."""
    _, sampler = sampler_on(shape)
    lora = tiny.random_lora(init_lora(sampler.network.config, tiny.LORA, jax.random.key(0)))
    sampler.adapters.load("tuned", tiny.LORA, lora)
    rng = np.random.default_rng(0)
    requests = [
        SampleRequest(
            tuple(rng.integers(1, 500, rng.integers(1, 150)).tolist()),
            int(rng.integers(2, 12)),
            temperature=(0.0, 0.7, 1.3)[index % 3],
            seed=index,
            adapter=adapter,
        )
        for index in range(40)
    ]
    together = sampler.generate(requests)
    assert [sampler.generate([request])[0] for request in requests[:3]] == together[:3]
    assert sampler.generate(requests[5:14]) == together[5:14]
    assert sampler.generate(requests[::-1]) == together[::-1]


@pytest.mark.parametrize("shape", ON_MESHES)
def test_sampling_on_a_mesh_gives_the_same_tokens(shape):
    plain, sharded = sampler_on(shape)
    requests = [SampleRequest(tuple(range(1, 40 + i % 3)), 6, temperature=float(i % 2), seed=i) for i in range(9)]
    expected = plain.generate(requests)
    for _ in range(2):  # the second time with stored prefixes
        for mine, theirs in zip(sharded.generate(requests), expected, strict=True):
            assert mine.ids == theirs.ids
            np.testing.assert_allclose(mine.logprobs, theirs.logprobs, atol=1e-4)
    [keys, _] = sharded._prefiller.prefixes.layers[0]
    assert keys.sharding.shard_shape(keys.shape)[0] == 1  # each device along data has its own store


def compiled_layer(shape):
    """A layer's programs on 128 sequences of 128 tokens: FLOPs of a device, and elements of its largest array."""
    mesh = make_mesh(MeshConfig(*shape), jax.devices()[: shape[0] * shape[1]])
    # Wide: XLA counts the body of attention's loop once, however many pairs of tiles a device has.
    config = dataclasses.replace(tiny.SHALLOW, num_heads=8, num_kv_heads=8, head_dim=16, embed_dim=512, mlp_dim=2048)
    compute = dataclasses.replace(tiny.F32, cpu_forms=False, attention="chunked")
    network = network_on(mesh, config, compute)
    args = layer_arguments(network, mesh, tiny.LORA, 128 * -(-128 // shape[0]))
    programs = compile_layer(network, tiny.LORA, args)
    shapes = [dims for program in programs for dims in re.findall(r"f32\[([\d,]+)\]", program.as_text())]
    flops = sum(program.cost_analysis()["flops"] for program in programs)
    return flops, max(math.prod(map(int, dims.split(","))) for dims in shapes)


@pytest.mark.long
@pytest.mark.parametrize("shape", [(8, 1), (4, 2), (2, 4), (1, 8), (3, 1), (6, 1)])
def test_each_device_computes_its_share_of_the_groups(shape):
    (flops, largest), (whole, largest_of_one) = compiled_layer(shape), compiled_layer((1, 1))
    devices, divides = shape[0] * shape[1], 128 % shape[0] == 0
    print(f"{shape}: {flops / (whole / devices):.3f} times its share of the FLOPs")
    assert flops <= (1.2 if divides else 1.35) * whole / devices
    assert largest <= (1.0 if divides else 1.6) * largest_of_one / shape[0]  # nothing of the whole batch


@pytest.mark.parametrize(
    ("heads", "kv_heads", "devices", "of_device"), [(8, 2, 8, 1), (9, 3, 2, 5), (9, 3, 8, 2), (32, 8, 16, 2)]
)
def test_heads_are_shared_by_devices_that_they_do_not_divide_among(heads, kv_heads, devices, of_device):
    q, k, v = (np.random.default_rng(0).normal(size=(1, 2, count, 4)) for count in (heads, kv_heads, kv_heads))
    shared_q, shared_k, shared_v = divisible_heads(*map(jax.numpy.asarray, (q, k, v)), devices)
    assert shared_q.shape[2] == devices * of_device and shared_k.shape[2] % devices == 0
    group, of_kv = heads // kv_heads, shared_q.shape[2] // shared_k.shape[2]
    for head in range(heads):
        np.testing.assert_allclose(shared_q[:, :, head], q[:, :, head], rtol=1e-6)
        np.testing.assert_allclose(shared_k[:, :, head // of_kv], k[:, :, head // group], rtol=1e-6)
        np.testing.assert_allclose(shared_v[:, :, head // of_kv], v[:, :, head // group], rtol=1e-6)


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
    assert specs["lora/layers/1/o/lora_a"] == P("model")
    assert specs["head/kernel"] == P()


def test_parameters_without_a_rule_are_all_named_and_a_remainder_is_not_cut():
    mesh = make_mesh(MeshConfig(4, 2))
    tree = {"layers": {0: {"q": {"weight": np.zeros((4, 6))}}}}
    assert jax.tree.leaves(shardings(tree, mesh))[0].spec == P("model")
    with pytest.raises(ValueError, match="no rule says how to place more, new on a mesh"):
        shardings({"new": np.zeros(3), "more": np.zeros(3), **tree}, mesh)


def test_meshes_that_do_not_fit_are_refused():
    assert make_mesh(MeshConfig()).shape[DATA] == 8
    assert make_mesh(MeshConfig(0, 2)).shape[DATA] == 4
    assert make_mesh(MeshConfig(1, 1)).size == 1
    for shape in ((16, 1), (0, 3), (8, 2), (1, 0)):
        with pytest.raises(ValueError, match="does not fit 8 devices"):
            make_mesh(MeshConfig(*shape))
