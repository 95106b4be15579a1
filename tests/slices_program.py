"""Loads a model in one or several processes, and tells how many bytes of its weights each of them read, and the most
that it held beside its arrays: slices_program.py --model=FOLDER [--coordinator=...]"""

from __future__ import annotations

import dataclasses
import json
import os

import jax
import numpy as np
from absl import app, flags

from optimas_jax.checkpoints import sources, weights
from optimas_jax.models.backbone import abstract_params
from optimas_jax.parallel.distributed import join, leave
from optimas_jax.parallel.mesh import MeshConfig, make_mesh
from optimas_jax.parallel.platform import default_compute
from optimas_jax.parallel.sharding import shardings

MODEL = flags.DEFINE_string("model", "", "Folder of a model.")
DTYPE = flags.DEFINE_string("dtype", "float32", "Of the arrays.")
COORDINATOR = flags.DEFINE_string("coordinator", "", "")
PROCESSES = flags.DEFINE_integer("num_processes", None, "")
PROCESS = flags.DEFINE_integer("process_id", None, "")


def anonymous() -> int:
    """Bytes of memory that are no pages of files."""
    with open(f"/proc/{os.getpid()}/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) * 1024


def main(_: list[str]) -> None:
    if COORDINATOR.value:
        link = join(COORDINATOR.value, PROCESSES.value, PROCESS.value)
    read, largest, most = [0], [0], [0]
    original = weights._hf_read

    def counting(handle, name):
        stored = original(handle, name)

        def count(index):
            part = stored.read(index)
            read[0] += part.nbytes
            most[0] = max(most[0], anonymous() - start - own())
            return part

        largest[0] = max(largest[0], int(np.prod(stored.shape)) * stored.dtype.itemsize)
        return weights.StoredTensor(stored.shape, stored.dtype, count)

    def own() -> int:
        """Bytes of the arrays of this process."""
        shards = [shard.data for array in jax.live_arrays() for shard in array.addressable_shards]
        return sum({shard.unsafe_buffer_pointer(): shard.nbytes for shard in shards}.values())

    weights._hf_read = counting
    jax.block_until_ready(jax.numpy.zeros(1))
    source, mesh = sources.resolve(MODEL.value), make_mesh(MeshConfig())
    compute = dataclasses.replace(default_compute(), dtype=jax.numpy.dtype(DTYPE.value))
    config = weights.load_config(source)
    placed = shardings(abstract_params(config, compute), mesh)
    start = anonymous() - own()
    params = weights.load_params(source, config, compute, placed)
    sums = [float(jax.numpy.abs(leaf.addressable_shards[0].data).sum()) for leaf in jax.tree.leaves(params)]
    found = {"read": read[0], "largest": largest[0], "beside": most[0], "sums": sums, "own": own()}
    print(f"found {json.dumps(found)}", flush=True)
    if COORDINATOR.value:
        link.close()
        leave()


if __name__ == "__main__":
    app.run(main)
