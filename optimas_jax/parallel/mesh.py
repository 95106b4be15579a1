"""The only maker of a mesh. Axes: ``data`` (rows, and slices of the weights), ``model`` (heads and MLP columns)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from optimas_jax.core.ranges import NonNegativeInt, PositiveInt

if TYPE_CHECKING:  # a configuration is read without jax
    from jax.sharding import Mesh

DATA, MODEL = "data", "model"


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Shape of the mesh.

    Attributes:
      data: devices along ``data``; 0 for all that are left.
      model: devices along ``model``.
    """

    data: NonNegativeInt = 0
    model: PositiveInt = 1


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with Auto axes: XLA propagates shardings from what the rules place.

    Args:
      devices: default: all of this process's platform. Sizes that need fewer take the first ones.

    Raises:
      ValueError: if the shape needs more devices than there are, or ``data=0`` leaves some over.
    """
    import jax
    from jax.sharding import AxisType

    devices = list(devices if devices is not None else jax.devices())
    data = config.data or len(devices) // max(config.model, 1)
    size = data * config.model
    if not 1 <= size <= len(devices) or (config.data == 0 and size != len(devices)):
        raise ValueError(
            f"a mesh of {data} x {config.model} (data x model) does not fit {len(devices)} devices: choose sizes whose "
            "product is at most that, or a model size that divides it"
        )
    return jax.make_mesh((data, config.model), (DATA, MODEL), axis_types=(AxisType.Auto,) * 2, devices=devices[:size])
