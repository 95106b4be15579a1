"""Several processes as one run: they join, wait for each other, and agree.

With a single process, functions do nothing beyond that process's own part.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from optimas_jax.core.types import StopRun
from optimas_jax.parallel.link import LOST, Link
from optimas_jax.parallel.mesh import DATA, MODEL
from optimas_jax.parallel.platform import free_memory
from optimas_jax.parallel.transfer import fetch, put_read

# Seconds of JAX's own watchdog, which aborts a process if ``Link`` cannot end it, after half of them at the earliest.
_HEARTBEAT = 50
_MEETING = 3600  # seconds that processes wait for each other
_TELL, _GATHER = 10, 240  # seconds of joining, until a line says so, and until it is given up: JAX aborts after 300


def join(coordinator: str, processes: int | None = None, process: int | None = None) -> Link:
    """Joins the processes of a run. To be called before any array is made.

    Args:
      coordinator: HOST:PORT at which process 0 can be reached, the same for all; ``auto`` if JAX finds the processes by
        itself: TPU slices, Slurm, Open MPI.
      processes, process: number of processes, and index of this one; None with ``auto``.

    If some are not there after ``_GATHER`` seconds, this process prints a line and ends with exit code ``LOST``.

    Raises:
      ValueError: for arguments that do not belong together.
      StopRun: if the processes do not find each other.
    """
    explicit = coordinator != "auto"
    host, _, port = coordinator.rpartition(":")
    is_address = bool(host) and port.isdecimal() and 0 < int(port) < 1 << 16
    if explicit and (not is_address or processes is None or process is None or not 0 <= process < processes):
        raise ValueError(
            f"--coordinator={coordinator} --num_processes={processes} --process_id={process}: give HOST:PORT of the "
            "first process, their number, and the index of this one, counted from 0; or --coordinator=auto on a TPU "
            "slice or under Slurm"
        )
    if explicit and process == 0:
        _check_port(int(port))
    # The SIGTERM handler of this service would keep a cancelled job alive.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        with _giving_up(coordinator):
            jax.distributed.initialize(
                coordinator if explicit else None,
                processes,
                process,
                cluster_detection_method="deactivate" if explicit else None,
                heartbeat_timeout_seconds=_HEARTBEAT,
            )
    except (ValueError, RuntimeError) as error:
        raise StopRun(
            f"the processes of this run did not find each other ({error}): is --coordinator={coordinator} right, and "
            "were all of them started?"
        ) from error
    link = Link(_client(), jax.process_index(), jax.process_count())
    if link.count > 1:
        link.watch()
    return link


def _check_port(port: int) -> None:
    """Raises ``StopRun`` if another program listens at the port: JAX would share it or crash."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # that of an earlier run may still be closing
        try:
            probe.bind(("", port))
        except OSError as error:
            raise StopRun(
                f"port {port} of --coordinator cannot be used ({error.strerror}): another run or program may have it; "
                "give all processes another one"
            ) from error


@contextlib.contextmanager
def _giving_up(coordinator: str) -> Iterator[None]:
    """Says after a while that the block waits for the other processes, and ends this process if it goes on too long."""

    def tell() -> None:
        print(f"waiting for the other processes (--coordinator={coordinator})", file=sys.stderr, flush=True)

    def give_up() -> None:
        print(
            f"\nerror: the processes of this run did not find each other within {_GATHER} s: is "
            f"--coordinator={coordinator} right and reached from here, and were all of them started?",
            file=sys.stderr,
            flush=True,
        )
        os._exit(LOST)

    timers = [threading.Timer(_TELL, tell), threading.Timer(_GATHER, give_up)]
    for timer in timers:
        timer.daemon = True
        timer.start()
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()


def leave() -> None:
    """Leaves the processes of a run, when all have ended their work."""
    jax.distributed.shutdown()


def meet(name: str) -> None:
    """Waits until all processes have called it with this name, which may be used only once."""
    if jax.process_count() > 1:
        _client().wait_at_barrier(f"meet/{name}", _MEETING * 1000)


def _client() -> Any:
    from jax._src import distributed  # has no public name in jax 0.10

    return distributed.global_state.client


def connect(mesh: Mesh) -> None:
    """Connects the devices of a mesh along each axis while all processes wait for each other. On CPU the first
    connection must be made within half a minute, and a program that one process compiles first may take longer."""
    if mesh.is_multi_process:
        from jax.experimental import multihost_utils

        _sum_up(mesh, _of_devices(mesh, 1))
        multihost_utils.broadcast_one_to_all(np.zeros(1, np.float32))


@partial(jax.jit, static_argnums=0)
def _sum_up(mesh: Mesh, x: jax.Array) -> jax.Array:
    def of_device(x: jax.Array) -> jax.Array:
        return jax.lax.psum(jax.lax.psum(x, DATA) + jax.lax.psum(x, MODEL), (DATA, MODEL))

    return jax.shard_map(of_device, mesh=mesh, in_specs=P(DATA, MODEL), out_specs=P(), check_vma=False)(x)


def least_free_memory(mesh: Mesh) -> int | None:
    """Bytes that can still be allocated on a device of a mesh (``platform.free_memory``), the minimum over all
    processes; None if unknown."""
    free = free_memory(mesh.local_devices[0])
    if not mesh.is_multi_process:
        return free
    least = int(fetch(_of_devices(mesh, -1 if free is None else free >> 20)).min())
    return None if least < 0 else least << 20


def _of_devices(mesh: Mesh, number: int) -> jax.Array:
    """[data, model] int32: for each device the ``number`` that its process gave."""
    own_part = np.full((1, 1), number, np.int32)
    return put_read(lambda _: own_part, mesh.devices.shape, NamedSharding(mesh, P(DATA, MODEL)))
