"""The task that runs one point on a machine of a Ray cluster. Workers import this module, so it imports little."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from pathlib import Path

from optimas_jax.report.process import STOPPED, run_module
from optimas_jax.sweep.locks import is_held


class PointKilledError(Exception):
    """The process of a point was killed from outside: not a fault of the point."""


def run_point(folder: str, name: str, cwd: str, variables: Mapping[str, str]) -> tuple[int, str]:
    """Runs a point in a process of its own, which ends with this one.

    Args:
      folder: of the sweep, on a file system that all machines share.
      cwd: folder that relative paths of a configuration start from.
      variables: added to the worker's environment, in which Ray has set the devices.

    Returns:
      Exit code and error message.

    Raises:
      PointKilledError: if the process was killed or interrupted.
    """
    machine = socket.gethostname()
    if not Path(cwd).is_dir() or not Path(folder, name).is_dir():
        missing = cwd if not Path(cwd).is_dir() else folder
        return (
            1,
            f"{machine} does not see {missing}: start the sweep in, and with a --workdir in, a folder that all share",
        )
    if not is_held(Path(folder)):
        return 1, (
            f"{machine} does not see that the sweep holds {folder}: the folder is another one there, or locks of its "
            "file system do not hold between machines, so that equal requests would be paid more than once. Use a "
            "--workdir on a file system with such locks (NFS 4, Lustre mounted with flock)"
        )
    log = Path(folder, name, "log.txt")
    run = run_module("optimas_jax.sweep.point", [folder, name], log, variables=variables, cwd=Path(cwd))
    code, message = asyncio.run(run)
    if code < 0 or code in STOPPED:
        raise PointKilledError(f"killed on {machine} ({f'signal {-code}' if code < 0 else 'interrupted'}), see {log}")
    return code, message
