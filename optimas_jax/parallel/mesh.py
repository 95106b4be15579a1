"""Device meshes, with axes ``data`` (rows, and slices of the weights) and ``model`` (heads and MLP columns)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from optimas_jax.core.schema import NonNegativeInt, PositiveInt

if TYPE_CHECKING:  # a configuration is read without jax
    from jax.sharding import Mesh

DATA, MODEL = "data", "model"


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Shape of the mesh.

    Attributes:
      data: number of devices along ``data``; 0 for all devices divided by ``model``.
      model: number of devices along ``model``.
    """

    data: NonNegativeInt = 0
    model: PositiveInt = 1


def mesh_shape(config: MeshConfig, count: int) -> tuple[int, int]:
    """Devices along ``data`` and ``model``, of ``count``.

    Raises:
      ValueError: if the shape needs more devices than there are, or if with ``data=0`` some would not be used.
    """
    data = config.data or count // max(config.model, 1)
    size = data * config.model
    if not 1 <= size <= count or (config.data == 0 and size != count):
        raise ValueError(
            f"a mesh of {data} x {config.model} (data x model) does not fit {count} devices: choose sizes whose "
            "product is at most that, or a model size that divides it"
        )
    return data, config.model


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with Auto axes: XLA propagates the shardings of parameters and batches.

    Args:
      devices: default: all devices of the process's platform. If the mesh is smaller, the first ones are used.

    Raises:
      ValueError: if the shape needs more devices than there are, or if with ``data=0`` some would not be used.
    """
    import jax
    from jax.sharding import AxisType

    devices = list(devices if devices is not None else jax.devices())
    data, _ = mesh_shape(config, len(devices))
    size = data * config.model
    if idle := {device.process_index for device in devices} - {device.process_index for device in devices[:size]}:
        raise ValueError(
            f"a mesh of {data} x {config.model} (data x model) leaves process {min(idle)} without a device: set data "
            "to 0, for all devices, or start fewer processes"
        )
    return jax.make_mesh((data, config.model), (DATA, MODEL), axis_types=(AxisType.Auto,) * 2, devices=devices[:size])
