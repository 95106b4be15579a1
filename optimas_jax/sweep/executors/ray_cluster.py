"""Points as tasks of a Ray cluster, which places them, gives each its devices, and retries killed points."""

from __future__ import annotations

import importlib
import os
import socket
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optimas_jax.parallel.visible import GPU, NONE, TPU
from optimas_jax.report.process import interrupt_on_terminate
from optimas_jax.sweep.executors.base import RETRIES, Resources, Runner
from optimas_jax.sweep.executors.ray_task import PointKilledError, run_point
from optimas_jax.sweep.points import SweepError

_START = (
    "start one on the first machine by `ray start --head --disable-usage-stats` and join the others by `ray start "
    "--address=HOST:6379 --disable-usage-stats`; RAY_ADDRESS=HOST:6379 names it"
)
_CONNECT_SECONDS = 5.0


class Ray:
    """Runs each point as a task of the running cluster; starts none itself.

    Attributes:
      jobs: points that run at the same time; None for as many as the cluster has room for.
    """

    def __init__(self, resources: Resources):
        self.jobs, self._resources = resources.jobs, resources
        self._ray = load_ray()

    @contextmanager
    def open(self, folder: Path, names: Sequence[str], lock: int) -> Iterator[Runner]:
        """Joins the cluster and gives it the points as tasks; see ``Executor.open``. The end of the block ends them."""
        ray = self._ray
        connect(ray)
        try:
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            wanted = task_resources(self._resources, nodes)
            again = {"max_retries": RETRIES, "retry_exceptions": [PointKilledError]}
            task = ray.remote(run_point)
            variables = NONE if not {"num_gpus", "resources"} & set(wanted) else {}

            async def run(name: str) -> tuple[int, str]:
                (folder / name).mkdir(exist_ok=True)
                try:
                    point = task.options(name=name, **wanted, **again)
                    return await point.remote(str(folder.resolve()), name, os.getcwd(), variables)
                except ray.exceptions.RayError as error:
                    return 1, _message(error)

            yield run
        finally:
            ray.shutdown()  # the end of the job ends its tasks


def load_ray() -> Any:
    """Imports ``ray``, with its usage reports turned off.

    Raises:
      SweepError: if it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise SweepError(
            "--executor=ray needs the extra ray: pip install 'optimas_jax[ray]', on all machines"
        ) from None


def connect(ray: Any) -> None:
    """Joins the cluster that ``RAY_ADDRESS`` names, or the cluster that this machine belongs to.

    Raises:
      SweepError: if there is none, or it does not answer.
    """
    address = os.environ.get("RAY_ADDRESS", "auto")
    if address == "local" or "://" in address:
        raise SweepError(f"RAY_ADDRESS is {address!r}, expected HOST:PORT of a cluster that this machine belongs to")
    try:
        if address != "auto":
            host, _, port = address.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
        ray.init(address=address, log_to_driver=False, logging_level="error")
    except (OSError, ValueError, RuntimeError) as error:
        line = str(error).strip().splitlines()[0]
        raise SweepError(f"no Ray cluster at {address} ({line}): {_START}") from error
    interrupt_on_terminate()  # again, as Ray has replaced the handler


def task_resources(resources: Resources, nodes: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Options of a task for the resources of a point; by default one accelerator where any machine has some. Warns if
    no machine that is now in the cluster has room for it."""
    kind = next((kind for kind in (GPU, TPU) if any(node.get(kind) for node in nodes)), "")
    devices = resources.devices if resources.devices is not None else int(bool(kind))
    wanted = {"CPU": resources.cpus, **({kind or GPU: devices} if devices else {})}
    if not any(all(node.get(name, 0) >= count for name, count in wanted.items()) for node in nodes):
        warnings.warn(f"no machine of the Ray cluster has {wanted}: points wait for one that has", stacklevel=2)
    options: dict[str, Any] = {"num_cpus": resources.cpus}
    if devices:
        options |= {"resources": {TPU: devices}} if kind == TPU else {"num_gpus": devices}
    return options


def _message(error: Exception) -> str:
    """The error of a point, for its row in the table."""
    cause = getattr(error, "cause", None) or error
    text = str(cause).strip()
    if isinstance(cause, ModuleNotFoundError):
        return f"{text} on a machine of the cluster: install optimas_jax of the same version there"
    tries = f", {RETRIES + 1} times" * (not isinstance(cause, ImportError))
    return f"{text.splitlines()[0] if text else type(cause).__name__}{tries}; the same command tries again"
