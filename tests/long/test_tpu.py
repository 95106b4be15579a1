"""What XLA's TPU compiler makes of our programs, without a TPU: ``.ci/long accelerators`` installs libtpu."""

import dataclasses
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from optimas_jax.learn.batches import make_batches
from optimas_jax.learn.config import LossConfig
from optimas_jax.learn.memory import Step, compile_layer, layer_arguments, place_shapes, placed_bytes, step_memory
from optimas_jax.learn.reward_model import RewardFunctions, _loss_gradients
from optimas_jax.learn.token_group import TokenGroup
from optimas_jax.learn.train_state import apply_gradients, init_state, init_trainable, make_optimizer
from optimas_jax.models.attention import attention
from optimas_jax.models.backbone import Network, abstract_params
from optimas_jax.models.config import LoraConfig
from optimas_jax.models.flat import FlatSequence, flatten
from optimas_jax.models.known import KNOWN
from optimas_jax.parallel.devices import KINDS
from optimas_jax.parallel.platform import default_compute
from optimas_jax.parallel.sharding import shardings

pytestmark = pytest.mark.long

pytest.importorskip("libtpu", reason=".ci/long accelerators installs it")
LORA = LoraConfig(rank=32, alpha=16.0)
LLAMA = KNOWN["hf:meta-llama/Meta-Llama-3-8B-Instruct"]


@pytest.fixture(scope="module")
def v5e():
    """The devices of a v5e-16 slice."""
    from jax.experimental import topologies

    os.environ |= {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-16",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }
    return topologies.get_topology_desc(platform="tpu", topology_name="v5e:4x4").devices


def compiled_attention(device, tokens, backward):
    placed = NamedSharding(Mesh(np.asarray([device]), ("x",)), P())

    def abstract(shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=placed)

    layout = flatten([FlatSequence([1] * tokens)], pad_id=0, tiled=False).layout
    layout = jax.tree.map(lambda leaf: abstract(leaf.shape, leaf.dtype), layout)

    def run(q, k, v, layout):
        return attention(q, k, v, layout, None, None, use_kernel=True)

    def gradients(q, k, v, layout):
        return jax.grad(lambda *qkv: run(*qkv, layout).astype(jnp.float32).sum(), argnums=(0, 1, 2))(q, k, v)

    heads = [abstract((tokens, heads, 128)) for heads in (32, 8, 8)]
    return jax.jit(gradients if backward else run).lower(*heads, layout).compile()


@pytest.mark.parametrize("backward", [False, True])
def test_attention_is_the_kernel_and_holds_nothing_of_length_squared(v5e, backward):
    for tokens in (512, 2048, 8192):
        program = compiled_attention(v5e[0], tokens, backward)
        text = program.as_text()
        assert text.count("tpu_custom_call") == (3 if backward else 1)
        shapes = [[int(size) for size in dims.split(",")] for dims in re.findall(r"\b\w+\[([\d,]+)\]", text)]
        if tokens == 8192:  # longer than all other dimensions
            assert not [shape for shape in shapes if sum(size >= tokens for size in shape) > 1]
        memory = program.memory_analysis()  # what fits a core's own memory is not counted
        print(f"{tokens} tokens: {memory.temp_size_in_bytes} bytes beside {memory.argument_size_in_bytes}")
        assert memory.temp_size_in_bytes <= memory.argument_size_in_bytes  # which are linear in the tokens


@pytest.mark.parametrize("remat", [False, True])
def test_the_papers_step_of_an_8b_model_fits_a_v5e_16_and_the_plan_is_near(v5e, remat):
    """16 groups of 2,048 tokens, one on each device. All layers run the same two programs."""
    mesh = Mesh(np.asarray(v5e).reshape(16, 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    network = Network(LLAMA, dataclasses.replace(default_compute("tpu"), remat=remat), mesh)
    compiled, planned = (step_memory(Step(network, mesh, LORA), 2048, compiled=how) for how in (True, False))
    weights = placed_bytes(place_shapes(abstract_params(LLAMA, network.compute), mesh))
    print(f"compiled {compiled}, planned {planned}, weights {weights}")
    assert weights + compiled.total < KINDS["v5e"].memory
    assert weights + planned.total == pytest.approx(weights + compiled.total, rel=0.1)


def test_the_other_programs_of_the_step_compile_and_are_small(v5e):
    """The loss, and the optimiser's step, which reads and writes the whole state in place."""
    mesh = Mesh(np.asarray(v5e).reshape(16, 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    tx, rows = make_optimizer(), NamedSharding(mesh, P("data"))
    state = jax.eval_shape(lambda: init_state(init_trainable(LLAMA, LORA, 5, jax.random.key(0)), tx))
    state = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), state, shardings(state, mesh)
    )
    pair = jax.ShapeDtypeStruct((), jnp.float32), jax.ShapeDtypeStruct((), jnp.float32)
    metrics = {"loss": pair, "pair_accuracy": pair}
    rate = jax.ShapeDtypeStruct((), jnp.float32)
    step = apply_gradients.lower(tx, state, [(state.trainable, metrics)], rate, mesh).compile().memory_analysis()
    assert step.alias_size_in_bytes == pytest.approx(step.output_size_in_bytes, rel=0.01)  # in place
    assert step.temp_size_in_bytes < 0.2 * step.output_size_in_bytes

    group = TokenGroup((5,) * 1024, ((6,) * 256,) * 4, (0.0, 0.3, 0.6, 1.0), 0)
    [batch] = make_batches([[group]], candidates=8, pad_id=0, tiled=False)
    batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((16, *leaf.shape), leaf.dtype, sharding=rows), batch)
    functions = RewardFunctions(Network(LLAMA, default_compute("tpu"), mesh), LORA, LossConfig(), tx)
    ends = jax.ShapeDtypeStruct((16, 8, LLAMA.embed_dim), jnp.bfloat16, sharding=rows)
    norm = {"scale": jax.ShapeDtypeStruct((LLAMA.embed_dim,), jnp.float32, sharding=NamedSharding(mesh, P()))}
    loss = _loss_gradients.lower(functions, state.trainable["head"], ends, norm, batch).compile().memory_analysis()
    assert loss.temp_size_in_bytes < 1 << 20


def test_a_layers_programs_hold_no_whole_batch(v5e):
    mesh = Mesh(np.asarray(v5e[:8]).reshape(4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    small = dataclasses.replace(LLAMA, embed_dim=1024, mlp_dim=3584, num_heads=8, num_kv_heads=2, num_layers=2)
    network = Network(small, default_compute("tpu"), mesh)
    for program in compile_layer(network, LORA, layer_arguments(network, mesh, LORA, 1024)):
        assert "tpu_custom_call" in program.as_text()
        assert not re.search(r"\[4,1024,", program.as_text())
