"""Accelerators by name: memory and peak rates, from the manufacturers' pages."""

from __future__ import annotations

import dataclasses
import re

_GB, _TERA = 2**30, 1e12


@dataclasses.dataclass(frozen=True)
class DeviceKind:
    """A kind of accelerator.

    Attributes:
      name: of the device.
      platform: JAX's name of its platform.
      memory: bytes that a program can use.
      flops: peak bfloat16 operations a second.
      bandwidth: bytes a second from its memory.
      interconnect: bytes a second from other devices.
    """

    name: str
    platform: str
    memory: int
    flops: float
    bandwidth: float
    interconnect: float


def _gpu(name: str, gigabytes: float, teraflops: float, bandwidth: float, interconnect: float) -> DeviceKind:
    """A GPU, with three quarters of its memory, which is JAX's default share; rates in GB/s."""
    return DeviceKind(name, "gpu", int(0.75 * gigabytes * _GB), teraflops * _TERA, bandwidth * 1e9, interconnect * 1e9)


def _tpu(name: str, gigabytes: float, teraflops: float, bandwidth: float, interconnect: float) -> DeviceKind:
    return DeviceKind(name, "tpu", int(gigabytes * _GB), teraflops * _TERA, bandwidth * 1e9, interconnect * 1e9)


KINDS = {
    kind.name: kind
    for kind in (
        _gpu("l4", 24, 121, 300, 32),
        _gpu("a10g", 24, 70, 600, 32),
        _gpu("rtx4090", 24, 165, 1008, 32),
        _gpu("a100-40", 40, 312, 1555, 300),
        _gpu("a100-80", 80, 312, 2039, 300),
        _gpu("h100", 80, 989, 3350, 450),
        _gpu("h200", 141, 989, 4800, 450),
        _tpu("v5e", 15.75, 197, 819, 200),
        _tpu("v5p", 95.0, 459, 2765, 600),
        _tpu("v6e", 31.25, 918, 1640, 400),
    )
}
_CORES = {"v5p": 2}  # TensorCores of a device: the name of a slice counts TensorCores


def devices_named(name: str) -> tuple[DeviceKind, int]:
    """A kind of device and their number: ``h100``, ``8xa100-80``, or a TPU slice, ``v5e-16``.

    Raises:
      ValueError: for an unknown name.
    """
    slice_of = re.fullmatch(r"(v\w+)-(\d+)", name)
    several = re.fullmatch(r"(?:(\d+)x)?(.*)", name)
    if slice_of and slice_of[1] in KINDS:
        kind, count = slice_of[1], int(slice_of[2]) // _CORES.get(slice_of[1], 1)
    else:
        count, kind = (int(several[1] or 1), several[2]) if several else (0, "")
    if kind not in KINDS or count < 1:
        raise ValueError(
            f"unknown devices {name!r}: give a name of {', '.join(KINDS)}, with a number before it (8xh100), or a TPU "
            "slice (v5e-16)"
        )
    return KINDS[kind], count
