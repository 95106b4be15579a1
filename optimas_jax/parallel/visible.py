"""Accelerators of this machine that a process sees: sets of devices, and the environment variables that name them.

JAX is not imported, because it would occupy the devices.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

GPU, TPU = "GPU", "TPU"
NONE = {"JAX_PLATFORMS": "cpu"}  # environment of a process without accelerators
_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")
_MIG = re.compile(r"\(UUID: (MIG-[^)]+)\)")
_UUID = re.compile(r"\(UUID: (GPU-[^)]+)\)")
_BOUNDS = {1: "1,1,1", 2: "1,2,1"}  # number of chips of a process on a TPU host -> their bounds, for libtpu


@dataclasses.dataclass(frozen=True)
class Accelerators:
    """Accelerators of this machine.

    Attributes:
      kind: ``GPU``, ``TPU``, or "" for none.
      names: in the form of ``CUDA_VISIBLE_DEVICES`` and ``TPU_VISIBLE_CHIPS``.
    """

    kind: str = ""
    names: tuple[str, ...] = ()

    def divide(self, jobs: int, each: int | None) -> list[dict[str, str]]:
        """Environment variables of ``jobs`` processes, no two of which see the same device.

        Args:
          each: number of devices of a process; None for an equal share of all devices, or, for a single job, for the
            environment as it is.

        Raises:
          ValueError: if there are too few devices, or a TPU host cannot be divided in that way.
        """
        if each == 0 or (each is None and not self.names):
            return [NONE if each == 0 else {}] * jobs
        if each is None and jobs == 1:
            return [{}]
        count = max(len(self.names) // jobs, 1) if each is None else each
        if count * jobs > len(self.names):
            raise ValueError(
                f"jobs x devices = {jobs} x {count} is more than the {len(self.names)} {self.kind or 'accelerator'}s "
                "of this machine: use fewer --jobs or --devices, or --devices=0 for points that need none"
            )
        if self.kind == TPU and count not in (*_BOUNDS, len(self.names)):
            raise ValueError(
                f"{count} of {len(self.names)} TPU chips for a process; possible: "
                f"{', '.join(map(str, _BOUNDS))} or all: set --devices"
            )
        return [self._environment(self.names[start * count : (start + 1) * count]) for start in range(jobs)]

    def _environment(self, names: tuple[str, ...]) -> dict[str, str]:
        if self.kind == GPU:
            return {"CUDA_VISIBLE_DEVICES": ",".join(names)}
        if len(names) == len(self.names):
            return {}
        bounds = {"TPU_CHIPS_PER_HOST_BOUNDS": _BOUNDS[len(names)], "TPU_HOST_BOUNDS": "1,1,1"}
        return {"TPU_VISIBLE_CHIPS": ",".join(names), **bounds}


def accelerators(environment: Mapping[str, str], devices: Path = Path("/dev")) -> Accelerators:
    """Accelerators that JAX would find in a process with this environment."""
    if environment.get("JAX_PLATFORMS", "").split(",")[0] == "cpu":
        return Accelerators()
    if any(map(importlib.util.find_spec, _PLUGINS)) and (names := _gpus(environment)):
        return Accelerators(GPU, names)
    if importlib.util.find_spec("libtpu") and (names := _chips(environment, devices)):
        return Accelerators(TPU, names)
    return Accelerators()


def gpus_listed(text: str) -> tuple[str, ...]:
    """Names of GPUs in the output of ``nvidia-smi --list-gpus``; for a GPU with MIG its parts."""
    names: list[str] = []
    for line in text.splitlines():
        if mig := _MIG.search(line):
            if names[-1:] and names[-1].startswith("GPU-"):
                names.pop()  # the whole GPU, whose first part this is
            names.append(mig[1])
        elif gpu := _UUID.search(line):
            names.append(gpu[1])
    return tuple(names)


def _gpus(environment: Mapping[str, str]) -> tuple[str, ...]:
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = (name.strip() for name in visible.split(","))
        return tuple(name for name in names if name not in ("", "-1"))
    try:
        done = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=60, check=False)  # noqa: S607
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return gpus_listed(done.stdout) if done.returncode == 0 else ()


def _chips(environment: Mapping[str, str], devices: Path) -> tuple[str, ...]:
    visible = environment.get("TPU_VISIBLE_CHIPS")
    if visible is not None:
        return tuple(filter(None, visible.split(",")))
    files = [*devices.glob("accel[0-9]*"), *(devices / "vfio").glob("[0-9]*")]
    return tuple(map(str, range(len(files))))
