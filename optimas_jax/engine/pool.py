"""Models of a run: each spec is loaded once, on first use, and shared by all its users."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import jax
from jax.sharding import Mesh

from optimas_jax.checkpoints.sources import ModelSource, cache_dir, resolve
from optimas_jax.checkpoints.tokenizer import Tokenizer, load_tokenizer
from optimas_jax.checkpoints.weights import load_config, load_params
from optimas_jax.core.progress import Progress
from optimas_jax.core.types import StopRun
from optimas_jax.engine.memory import with_caches
from optimas_jax.engine.sampler import Sampler
from optimas_jax.learn.config import TokenBatch
from optimas_jax.learn.memory import Step, step_memory, tokens_that_fit
from optimas_jax.models.backbone import Network, abstract_params
from optimas_jax.models.config import BackboneConfig, LoraConfig
from optimas_jax.models.lora import Params
from optimas_jax.parallel.distributed import connect, least_free_memory, meet
from optimas_jax.parallel.lanes import Lanes
from optimas_jax.parallel.lockstep import Leader, Shared, open_shared, together
from optimas_jax.parallel.mesh import DATA, MeshConfig, make_mesh
from optimas_jax.parallel.platform import Compute, default_compute, for_several_devices, forget_programs
from optimas_jax.parallel.sharding import put_shards, replicate, shardings

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A backbone on its devices, with its tokenizer.

    Attributes:
      mesh: the devices that hold ``params``; also for a single device.
    """

    network: Network
    mesh: Mesh
    params: Params
    tokenizer: Tokenizer

    def for_training(self, batch: TokenBatch) -> Network:
        """The network for training on batches of this shape."""
        return dataclasses.replace(self.network, compute=dataclasses.replace(self.network.compute, remat=batch.remat))

    @property
    def shards(self) -> int:
        """Number of parts in which a batch is laid out: devices along ``data``."""
        return self.mesh.shape[DATA]

    def put(self, parts: Sequence[T]) -> T:
        """Arrays of each shard of a batch, all of the same shapes, on the devices (``parallel.sharding``)."""
        return replicate(parts[0], self.mesh) if self.mesh.size == 1 else put_shards(parts, self.mesh)

    def check_memory(
        self, lora: LoraConfig, batch: TokenBatch, setting: str, *, shards: int = 1, over_vocabulary: bool = False
    ) -> None:
        """Raises ``StopRun`` if a training step does not fit into memory; the message names settings that fit.

        If all batches have one size, the programs of the step are compiled for this; the step itself then finds them in
        the compilation cache.

        Args:
          setting: name of the configuration of ``batch``, for the message.
          shards: number of shards that share the tokens of a batch.
          over_vocabulary: see ``learn.memory.Step``.
        """
        network = self.for_training(batch)
        free, lanes = least_free_memory(self.mesh), Lanes.of(network.compute, self.mesh).count
        if free is None:
            return
        compiled = network.compute.one_size
        step = Step(network, self.mesh, lora, lanes, over_vocabulary)
        memory = step_memory(step, -(-batch.tokens // shards), compiled=compiled)
        if memory.total > free:
            fits = tokens_that_fit(step, free) * shards
            way_out = (
                f"set {setting}.batch.tokens = {fits} or less" if fits else "adapt fewer layers (lora.last_layers)"
            )
            if not batch.remat:
                way_out += f", or {setting}.batch.remat = True"
            raise StopRun(
                f"a training step on {batch.tokens} tokens needs {'' if compiled else 'about '}"
                f"{memory.total / 2**30:.1f} GB on each device beside the model, and {free / 2**30:.1f} GB are free: "
                f"{way_out}"
            )


class Engines:
    """The models of one run."""

    def __init__(self, mesh: MeshConfig, progress: Progress, shared: Shared | None = None):
        """``shared``: see ``parallel.lockstep``."""
        self._mesh_config, self._progress, self.shared = mesh, progress, shared
        self._sources: dict[str, ModelSource] = {}
        self._tokenizers: dict[str, Tokenizer] = {}
        self._models: dict[str, LoadedModel] = {}
        self._samples = False
        self._lock = threading.Lock()

    @property
    def leader(self) -> Leader | None:
        """The link to the other processes, which follow this one; None if there is only one process."""
        return self.shared and self.shared.leader

    @functools.cached_property
    def mesh(self) -> Mesh:
        """The mesh that models are placed on; raises ``StopRun`` if the devices do not allow the configured one."""
        try:
            return make_mesh(self._mesh_config)
        except ValueError as error:
            raise StopRun(f"config.mesh: {error}") from error

    def find(self, specs: Iterable[str]) -> None:
        """Fetches the files of models that will be loaded later; raises ``WeightsError`` for an unknown model, an
        unsupported architecture, and a tokenizer that does not fit."""
        for spec in specs:
            self._progress.line(f"looking for {spec}")
            self._tokenizer(spec, load_config(self._source(spec)))

    def _tokenizer(self, spec: str, config: BackboneConfig) -> Tokenizer:
        """The model's tokenizer, cached: a large one takes seconds to read."""
        if spec not in self._tokenizers:
            self._tokenizers[spec] = load_tokenizer(self._source(spec), config.vocab_size)
        return self._tokenizers[spec]

    def _source(self, spec: str) -> ModelSource:
        """The resolved spec, cached: resolving asks a hub, or computes the hash of a large file."""
        if spec not in self._sources:
            self._sources[spec] = resolve(spec)
        return self._sources[spec]

    def model(self, spec: str) -> LoadedModel:
        """Loads ``spec`` (``checkpoints.sources``) on first use."""
        return self._models.get(spec) or self.load(spec)

    @together
    def load(self, spec: str) -> LoadedModel:
        """See ``model``."""
        with self._lock:
            if spec not in self._models:
                mesh = self.mesh
                meet(f"load {spec}")
                connect(mesh)
                self._progress.line(f"loading {spec}")
                use_compilation_cache(cache_dir() / "xla")
                source = self._source(spec)
                config, compute = load_config(source), default_compute()
                params = load_params(source, config, compute, shardings(abstract_params(config, compute), mesh))
                network = network_on(mesh, config, compute)
                self._models[spec] = LoadedModel(network, mesh, params, self._tokenizer(spec, config))
                meet(f"loaded {spec}")
            return self._models[spec]

    def sampler(self, spec: str) -> Sampler:
        """A sampling engine over ``spec``."""
        return open_shared(self.leader, f"sampler of {spec}", "sampler", (spec,), partial(self._sampler, spec))

    def _sampler(self, spec: str, shared: Shared | None = None) -> Sampler:
        model, self._samples = self.model(spec), True
        network = with_caches(model.network, least_free_memory(model.mesh))
        return Sampler(network, model.params, model.tokenizer, shared)

    @together
    def forget_programs(self) -> None:
        """Drops the compiled programs of samplers, which have one for every size of batch. To be called at the end of a
        phase, if the next phase has other prompts; see ``parallel.platform``."""
        if self._samples:
            forget_programs()


def make_engines(mesh: MeshConfig, progress: Progress, leader: Leader | None) -> Engines:
    """The models of a run, in all its processes if there is a leader."""
    return open_shared(leader, "engines", "engines", (mesh,), partial(Engines, mesh, progress))


def network_on(mesh: Mesh, config: BackboneConfig, compute: Compute) -> Network:
    """A network whose batches are split over the shards of a mesh."""
    if mesh.size == 1:
        return Network(config, compute)
    return Network(config, for_several_devices(compute), mesh)


def use_compilation_cache(folder: Path) -> None:
    """Keeps compiled programs on disk, so that the next process starts with them."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
