"""The device part of a plan: memory of each local model of a run on each device, and seconds of a training step.

Needs no weights, no device and no key: sizes come from configurations (for the presets, from ``models.known``), memory
from shapes (``learn.memory``). Figures without a compiler for the device are estimates, and are called so.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh

from optimas_jax.checkpoints.sources import resolve
from optimas_jax.checkpoints.weights import RANDOM_CONFIG, load_config
from optimas_jax.engine.memory import most_rows, token_bytes, with_caches
from optimas_jax.learn.config import TokenBatch
from optimas_jax.learn.memory import Step, StepMemory, place_shapes, placed_bytes, step_memory, tokens_that_fit
from optimas_jax.llm.specs import provider
from optimas_jax.loop.config import RunConfig
from optimas_jax.loop.setup.completers import answering, loads_reward_model
from optimas_jax.models.backbone import Network, abstract_params
from optimas_jax.models.config import BackboneConfig, LoraConfig
from optimas_jax.models.known import KNOWN
from optimas_jax.models.lora import module_shapes
from optimas_jax.parallel.devices import DeviceKind, devices_named
from optimas_jax.parallel.mesh import DATA, MODEL, MeshConfig, mesh_shape
from optimas_jax.parallel.platform import default_compute

UTILISATION = 0.4  # share of the peak rate that large products reach: an estimate, until a device was measured
_DOUBLINGS = 8  # most doublings of the number of devices in suggested settings
_SLOTS = 2048  # tokens of a request, for which the rows of a decode batch are computed


@dataclasses.dataclass(frozen=True)
class Training:
    """A training step of a model.

    Attributes:
      what: ``local rewards`` or ``policy``.
      tokens: tokens on each device along ``data``.
      memory: memory on each device, beside the frozen weights.
      flops: operations of a device.
      traffic: bytes that a device receives from others.
      seconds: the larger of the times for computing and for receiving.
    """

    what: str
    tokens: int
    memory: StepMemory
    flops: float
    traffic: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class ModelPlan:
    """One local model on the devices.

    Attributes:
      spec: spec of the model.
      parameters: number of weights.
      weights: bytes of the weights on each device.
      training: its training steps.
      rows: requests of ``_SLOTS`` tokens that are decoded together, on all devices; 0 where it samples nothing.
      caches: bytes of keys and values on each device.
    """

    spec: str
    parameters: int
    weights: int
    training: tuple[Training, ...] = ()
    rows: int = 0
    caches: int = 0


@dataclasses.dataclass(frozen=True)
class DevicePlan:
    """All local models of a run on the devices.

    Attributes:
      kind, count: kind and number of the devices.
      mesh: devices along ``data`` and ``model``.
      models: see ``ModelPlan``; empty where servers answer everything.
      needed: most bytes on each device at the same time.
      way_out: settings that fit, if these do not.
    """

    kind: DeviceKind
    count: int
    mesh: tuple[int, int]
    models: tuple[ModelPlan, ...]
    needed: int
    way_out: str = ""

    @property
    def fits(self) -> bool:
        return self.needed <= self.kind.memory

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "fits": self.fits, "utilisation": UTILISATION}


@dataclasses.dataclass(frozen=True)
class Use:
    """A use of a local model.

    Attributes:
      spec: spec of the model.
      what: ``sampling``, ``local rewards`` or ``policy``.
      lora, batch: settings of training; None where nothing is trained.
      setting: path of the settings that hold ``batch``.
      longest: fewest tokens that the batch of a device must hold.
      is_shared: whether the tokens of ``batch`` are divided among the devices; otherwise each device has as many.
    """

    spec: str
    what: str
    lora: LoraConfig | None = None
    batch: TokenBatch | None = None
    setting: str = ""
    longest: int = 0
    is_shared: bool = False


def plan_on(config: RunConfig, devices: str, choices: Sequence[str] = ()) -> DevicePlan:
    """Plans the local models of a run on devices by name (``parallel.devices.devices_named``).

    Args:
      choices: models that components may choose.

    Raises:
      ValueError: as ``plan_devices``, and for devices that are not known.
    """
    return plan_devices(uses_of(config, choices), config.mesh, *devices_named(devices))


def plan_devices(uses: Sequence[Use], mesh: MeshConfig, kind: DeviceKind, count: int) -> DevicePlan:
    """Plans the local models of a run.

    Raises:
      ValueError: for a model whose sizes are not known here, and a mesh that does not fit the devices.
    """
    plan = _plan(uses, mesh, kind, count)
    return plan if plan.fits else dataclasses.replace(plan, way_out=_way_out(uses, mesh, kind, count))


def _plan(uses: Sequence[Use], mesh: MeshConfig, kind: DeviceKind, count: int) -> DevicePlan:
    shape = mesh_shape(mesh, count)
    abstract = _abstract(shape)
    plans, largest = {}, 0
    for spec in dict.fromkeys(use.spec for use in uses):
        network = _network(spec, kind, abstract)
        trained = [use for use in uses if use.spec == spec and use.lora]
        steps = tuple(_training(use, network, abstract, kind) for use in trained)
        plans[spec] = ModelPlan(spec, _parameters(network.config), _weights(network, abstract), steps)
        largest = max(largest, *(step.memory.total for step in steps), 0)
    weights = sum(plan.weights for plan in plans.values())
    free = kind.memory - weights - largest
    for spec in dict.fromkeys(use.spec for use in uses if use.what == "sampling"):
        plans[spec] = _with_caches(plans[spec], _network(spec, kind, abstract), shape[0], free)
        free -= plans[spec].caches
    needed = weights + largest + sum(plan.caches for plan in plans.values())
    return DevicePlan(kind, count, shape, tuple(plans.values()), needed)


def config_of(spec: str) -> BackboneConfig:
    """Sizes of a model, without fetching it.

    Raises:
      ValueError: for a model whose sizes are not in this package and that is not on this machine.
    """
    if spec in KNOWN:
        return KNOWN[spec]
    if spec.startswith("random:"):
        return RANDOM_CONFIG
    if Path(spec).expanduser().exists():
        return load_config(resolve(spec))
    raise ValueError(f"the sizes of {spec!r} are not known before it is fetched: give the path of a local copy")


def _abstract(shape: tuple[int, int]) -> AbstractMesh:
    return AbstractMesh(shape, (DATA, MODEL), axis_types=(AxisType.Auto,) * 2)


def _network(spec: str, kind: DeviceKind, mesh: AbstractMesh) -> Network:
    several = cast(Mesh, mesh) if mesh.size > 1 else None  # for shapes alone, a mesh needs no devices
    return Network(config_of(spec), default_compute(kind.platform), several)


def _weights(network: Network, mesh: AbstractMesh) -> int:
    return placed_bytes(place_shapes(abstract_params(network.config, network.compute), mesh))


def _parameters(config: BackboneConfig) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(config, default_compute("gpu"))))


def _tokens(use: Use, mesh: AbstractMesh) -> int:
    """Tokens of a training step on each device along ``data``."""
    assert use.batch is not None
    return max(-(-use.batch.tokens // mesh.shape[DATA]), use.longest) if use.is_shared else use.batch.tokens


def _step(use: Use, network: Network, mesh: AbstractMesh) -> Step:
    assert use.lora is not None and use.batch is not None
    step = Step(network, mesh, use.lora, over_vocabulary=use.what == "policy")
    return step.with_remat(use.batch.remat)


def _training(use: Use, network: Network, mesh: AbstractMesh, kind: DeviceKind) -> Training:
    assert use.lora is not None and use.batch is not None
    tokens, lora, config = _tokens(use, mesh), use.lora, network.config
    memory = step_memory(_step(use, network, mesh), tokens)
    adapted = config.num_layers - lora.first(config.num_layers)
    of_layer = sum(math.prod(shape) for shape in module_shapes(config).values()) / mesh.shape[MODEL]
    longest = use.longest or tokens
    attention = 2 * longest * config.num_heads * config.head_dim / mesh.shape[MODEL]  # two products, half of the keys
    forward = 2.0 * of_layer + attention
    # The backward pass of frozen weights has one product for each product of the forward pass, which remat repeats.
    flops = tokens * forward * (config.num_layers + adapted * (2 if use.batch.remat else 1))
    size = np.dtype(network.compute.dtype).itemsize
    away = 1 - 1 / mesh.shape[DATA]
    traffic = away * (of_layer * size * (config.num_layers + adapted) + 2.0 * memory.state / 4)
    seconds = max(flops / (UTILISATION * kind.flops), traffic / kind.interconnect)
    return Training(use.what, tokens, memory, flops, traffic, seconds)


def _with_caches(plan: ModelPlan, network: Network, shards: int, free: int) -> ModelPlan:
    network = with_caches(network, max(free, 0))
    compute = network.compute
    rows = most_rows(compute, _SLOTS)
    of_token = token_bytes(network)
    prefixes = compute.prefix_tokens * of_token
    return dataclasses.replace(plan, rows=rows * shards, caches=prefixes + rows * _SLOTS * of_token)


def _way_out(uses: Sequence[Use], mesh: MeshConfig, kind: DeviceKind, count: int) -> str:
    """The nearest settings that fit: first more time for less memory, then smaller batches, then more devices."""
    for more in (count << doubling for doubling in range(_DOUBLINGS)):
        try:
            abstract = _abstract(mesh_shape(mesh, more))
        except ValueError:
            continue
        networks = {use.spec: _network(use.spec, kind, abstract) for use in uses}
        free = kind.memory - sum(_weights(network, abstract) for network in networks.values())
        changed, settings = [], [] if more == count else [f"use {more} devices"]
        for use in uses:
            fitting = _fitting(use, networks[use.spec], abstract, free)
            if fitting is None:
                break
            changed.append(fitting[0])
            settings += fitting[1]
        if len(changed) == len(uses) and _plan(changed, mesh, kind, more).fits:
            return ", ".join(settings)
    return "choose a smaller model, or devices with more memory"


def _fitting(use: Use, network: Network, mesh: AbstractMesh, free: int) -> tuple[Use, list[str]] | None:
    """The use with a training step that fits ``free`` bytes, and the settings that differ; None if none fits."""
    if use.lora is None or use.batch is None:
        return use, []
    tokens, step = _tokens(use, mesh), _step(use, network, mesh)
    if step_memory(step, tokens).total <= free:
        return use, []
    settings = [] if use.batch.remat else [f"{use.setting}.batch.remat = True"]
    batch, step = dataclasses.replace(use.batch, remat=True), step.with_remat()
    if step_memory(step, tokens).total > free:
        most = tokens_that_fit(step, free)
        if most < max(use.longest, 64):
            return None
        batch = dataclasses.replace(batch, tokens=most * (mesh.shape[DATA] if use.is_shared else 1))
        settings.append(f"{use.setting}.batch.tokens = {batch.tokens}")
    return dataclasses.replace(use, batch=batch), settings


def uses_of(config: RunConfig, choices: Sequence[str] = ()) -> list[Use]:
    """The local models that a run loads, with their uses. ``choices``: models that components may choose."""
    models = [spec for spec in answering(config, choices) if not provider(spec)]
    uses = [Use(spec, "sampling") for spec in dict.fromkeys(models)]
    reward = config.reward
    if reward.heads == "trained" and config.optimize.score == "local":
        batch = reward.batch
        uses.append(Use(reward.model, "local rewards", reward.lora, batch, "config.reward", batch.group_tokens, True))
    elif loads_reward_model(config):
        uses.append(Use(reward.model, "local rewards"))
    policy = config.policy
    weights = getattr(config.system, "weights", None)  # a program has no such field: its components say so
    tuned = policy.model or (models[0] if models and weights else "")
    if tuned and weights != "":
        uses.append(Use(tuned, "policy", policy.lora, policy.batch, "config.policy"))
    return uses
