"""The result of a run, read from its folder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from optimas_jax.loop.journal import BEST
from optimas_jax.programs.program import Program
from optimas_jax.saved import Optimized, load


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run found, read from its folder.

    Attributes:
      folder: of the run.
      results: ``results.json``.
      best: the optimised program.
    """

    folder: Path
    results: Mapping[str, Any]
    best: Optimized

    @property
    def gain(self) -> float:
        """Mean gain of the metric on the test split."""
        return self.results["gain"]["mean"]

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the gain."""
        low, high = self.results["gain"]["ci95"]
        return low, high

    @property
    def confirmed(self) -> bool:
        """Whether the change was confirmed on examples that the search has not seen."""
        return bool((self.results["confirmed"] or {}).get("changes"))

    def __repr__(self) -> str:
        before, after = (self.results[name]["mean"] for name in ("baseline", "optimized"))
        low, high = self.interval
        return (
            f"Result({self.results['metric']} {before:.3f} -> {after:.3f}, gain {self.gain:+.3f} "
            f"[{low:+.3f}, {high:+.3f}] on {self.results['n']} examples, "
            f"{'confirmed' if self.confirmed else 'not confirmed'}; {self.folder})"
        )


def open_run(folder: str | Path, program: Program | Callable[..., Any]) -> Result:
    """The result of a finished run.

    Raises:
      FileNotFoundError: it has no ``results.json``.
    """
    folder = Path(folder)
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return Result(folder, results, load(folder / BEST, program))
