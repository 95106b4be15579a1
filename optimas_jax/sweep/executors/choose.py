"""Executors by name."""

from __future__ import annotations

from optimas_jax.sweep.executors.base import Executor, Resources
from optimas_jax.sweep.executors.local import Local
from optimas_jax.sweep.executors.ray_cluster import Ray
from optimas_jax.sweep.executors.slurm import Slurm
from optimas_jax.sweep.points import SweepError

EXECUTORS = ("local", "slurm", "ray")


def make_executor(name: str, resources: Resources, sbatch: str = "") -> Executor:
    """The executor ``name`` (``EXECUTORS``). ``sbatch``: options of that command, for ``slurm`` alone.

    Raises:
      SweepError: for an unknown name, or an executor that cannot be used here, with the way out.
    """
    if sbatch and name != "slurm":
        raise SweepError(f"--sbatch={sbatch!r} is for --executor=slurm alone, and the executor is {name}")
    if name == "local":
        return Local(resources)
    if name == "slurm":
        return Slurm(resources, sbatch)
    if name == "ray":
        return Ray(resources)
    raise SweepError(f"--executor is {name!r}; allowed: {', '.join(EXECUTORS)}")
