"""Several adapters of one base in one pass: each request has an adapter, or none.

The adapters of a pass are stacked, A [in, n R] and B [n R, out], and between the two products every token keeps the
columns of its adapter. One pass over the base serves all of them, and the base is never copied.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from optimas_jax.models.config import TARGETS, BackboneConfig, LoraConfig
from optimas_jax.models.flat import bucket
from optimas_jax.models.lora import Params, module_shapes
from optimas_jax.parallel.lockstep import Shared, together
from optimas_jax.parallel.sharding import AnyMesh, replicate

_STACKS = 4  # stacks that are cached, so that batches with the same adapters do not build them again


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedAdapter:
    """LoRA weights that requests can name.

    Attributes:
      name: by which requests name it.
      config: rank, scale, and the adapted modules and layers.
      params: LoRA tree.
    """

    name: str
    config: LoraConfig
    params: Params


@dataclasses.dataclass(frozen=True, eq=False)
class Stack:
    """Adapters side by side.

    Attributes:
      adapters: in the order of their columns.
      config: configuration of the stack as one adapter of scale 1.
      params: LoRA tree with the columns of all adapters.
      gates: [n + 1, n R] float32: for each adapter its scale at its columns, 0 elsewhere; the last row, for the base,
        is 0.
    """

    adapters: tuple[LoadedAdapter, ...]
    config: LoraConfig
    params: Params
    gates: np.ndarray

    def gate(self, adapters: Sequence[LoadedAdapter | None]) -> np.ndarray:
        """Rows of ``gates`` [len(adapters), n R] for tokens or rows with these adapters."""
        index_of = {adapter: index for index, adapter in enumerate(self.adapters)}
        base = len(self.gates) - 1
        return self.gates[[base if adapter is None else index_of[adapter] for adapter in adapters]]


def make_stack(base: BackboneConfig, adapters: Sequence[LoadedAdapter]) -> Stack:
    """Stacks adapters; the number of columns is rounded up to one of a few sizes, because each size is compiled."""
    configs = [adapter.config for adapter in adapters]
    targets = tuple(name for name in TARGETS if any(name in config.targets for config in configs))
    lowest = min(config.first(base.num_layers) for config in configs)
    rank = bucket(sum(config.rank for config in configs), 8, 1)
    shapes = module_shapes(base)
    layers: Params = {}
    for index in range(lowest, base.num_layers):
        layers[index] = {}
        for name in targets:
            fan_out, fan_in = shapes[name]
            a, b = np.zeros((fan_in, rank), np.float32), np.zeros((rank, fan_out), np.float32)
            begin = 0
            for adapter in adapters:
                columns = slice(begin, begin := begin + adapter.config.rank)
                matrices = adapter.params["layers"].get(index, {}).get(name)
                if matrices is not None:
                    a[:, columns], b[columns] = np.asarray(matrices["lora_a"]), np.asarray(matrices["lora_b"])
            layers[index][name] = {"lora_a": jnp.asarray(a), "lora_b": jnp.asarray(b)}
    gates = np.zeros((len(adapters) + 1, rank), np.float32)
    begin = 0
    for row, config in zip(gates, configs, strict=False):
        row[begin : begin + config.rank] = config.scale
        begin += config.rank
    config = LoraConfig(rank=rank, alpha=float(rank), targets=targets, last_layers=base.num_layers - lowest)
    return Stack(tuple(adapters), config, {"layers": layers}, gates)


class AdapterStore:
    """The adapters that an engine serves, by name. May be used from any thread."""

    def __init__(self, base: BackboneConfig, mesh: AnyMesh | None = None, shared: Shared | None = None):
        """``mesh``: of the base; None for one device. ``shared``: see ``parallel.lockstep``."""
        self.shared = shared
        self._base, self._mesh = base, mesh
        self._lock = threading.Lock()
        self._adapters: dict[str, LoadedAdapter] = {}
        self._stacks: OrderedDict[frozenset[LoadedAdapter], Stack] = OrderedDict()

    @property
    def names(self) -> list[str]:
        return list(self._adapters)

    @together
    def load(self, name: str, config: LoraConfig, params: Params) -> None:
        """Loads an adapter under a name; replaces an earlier one of that name.

        Raises:
          ValueError: for an adapter that does not fit the base.
        """
        check_fits(self._base, config, params, name)
        with self._lock:
            self._adapters[name] = LoadedAdapter(name, config, params)

    @together
    def unload(self, name: str) -> None:
        """Unloads the adapter; requests in flight finish with it. Raises ``ValueError`` for an unknown name."""
        self.get(name)
        with self._lock:
            del self._adapters[name]

    def get(self, name: str) -> LoadedAdapter | None:
        """The adapter of a name; None for ``""``, which is the base.

        Raises:
          ValueError: for an unknown name.
        """
        if not name:
            return None
        if name not in self._adapters:
            raise ValueError(f"unknown adapter {name!r}; loaded are {', '.join(self._adapters) or 'none'}")
        return self._adapters[name]

    def stack(self, adapters: Sequence[LoadedAdapter | None]) -> Stack | None:
        """The stack of these adapters; None if all are None (the base)."""
        stacked = frozenset(adapter for adapter in adapters if adapter is not None)
        if not stacked:
            return None
        with self._lock:
            if stacked not in self._stacks:
                stack = make_stack(self._base, sorted(stacked, key=lambda adapter: adapter.name))
                self._stacks[stacked] = dataclasses.replace(stack, params=replicate(stack.params, self._mesh))
            self._stacks.move_to_end(stacked)
            while len(self._stacks) > _STACKS:
                self._stacks.popitem(last=False)
            return self._stacks[stacked]


def check_fits(base: BackboneConfig, config: LoraConfig, params: Params, name: str) -> None:
    """Raises ``ValueError`` if an adapter does not fit this base, does not match its configuration, or has numbers that
    are not finite. Adapters of files were checked when they were read (``checkpoints.peft``)."""
    shapes = module_shapes(base)
    for index in range(base.num_layers):
        layer = params["layers"].get(index, {})
        expected = set(config.targets) if config.adapts(index, base.num_layers) else set()
        if set(layer) != expected:
            raise ValueError(
                f"adapter {name!r} adapts {sorted(layer) or 'nothing'} in layer {index}, its configuration says "
                f"{sorted(expected) or 'nothing'}"
            )
        for module, matrices in layer.items():
            fan_out, fan_in = shapes[module]
            actual = (matrices["lora_a"].shape, matrices["lora_b"].shape)
            needed = ((fan_in, config.rank), (config.rank, fan_out))
            if actual != needed:
                raise ValueError(
                    f"adapter {name!r} does not fit this base: layer {index}, {module} has A and B of shapes {actual}, "
                    f"{needed} are needed; it was made for another base or rank"
                )
            if not all(np.isfinite(np.asarray(matrix)).all() for matrix in matrices.values()):
                raise ValueError(f"adapter {name!r} has numbers that are not finite in layer {index}, {module}")
    beyond = sorted(set(params["layers"]) - set(range(base.num_layers)))
    if beyond:
        raise ValueError(f"adapter {name!r} adapts layers {beyond} of a base of {base.num_layers} layers")
