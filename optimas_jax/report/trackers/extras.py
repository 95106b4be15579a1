"""Checks of tracker libraries that are extras of this package: installed, in a version that is known to work."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from optimas_jax.report.trackers.tracker import TrackerError

# Distribution, the first version that works, and the first that is not known to; as in setup.py.
WINDOWS = {
    "wandb": ("wandb", (0, 31), (0, 32)),
    "mlflow": ("mlflow", (3, 17), (4, 0)),
    "otel": ("opentelemetry-sdk", (1, 30), (2, 0)),
}


def library(name: str) -> Any:
    """Imports a module of a tracker's library, which may be absent where types are checked."""
    return importlib.import_module(name)


def check_installed(tracker: str) -> None:
    """Raises ``TrackerError`` if the library of a tracker is missing, or has another version."""
    package, first, end = WINDOWS[tracker]
    way_out = f"pip install 'optimas_jax[{tracker}]', or leave {tracker} out of config.trackers"
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise TrackerError(f"the tracker {tracker} needs {package}, which is not installed: {way_out}") from None
    parts = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if not first <= parts < end:
        window = f">={'.'.join(map(str, first))},<{'.'.join(map(str, end))}"
        raise TrackerError(f"the tracker {tracker} needs {package}{window}, and {version} is installed: {way_out}")


def check_options(tracker: str, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raises ``TrackerError`` for options that a function of a tracker's library does not take."""
    try:
        inspect.signature(function).bind(**options)
    except TypeError as error:
        raise TrackerError(
            f"tracker({tracker!r}): {error}; options are those of {function.__name__} of {tracker}"
        ) from None
