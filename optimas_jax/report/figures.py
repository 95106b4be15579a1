"""Pictures: matplotlib, which is an extra, and files that are written whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def check_matplotlib() -> None:
    """Raises ``ValueError`` without matplotlib. To be called before anything is spent."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ValueError(f"pictures are drawn by matplotlib ({error}): pip install 'optimas_jax[compare]'") from error


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG in one step."""
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, format="png", dpi=150)
    partial.replace(path)
