"""Scalars of a run for TensorBoard."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_tensorboard(folder: Path, results: Mapping[str, Any], history: list[Mapping[str, float]]) -> None:
    """Training curves, validation score by accepted step, final scores, as one event file; a folder that has one stays
    as it is."""
    from tensorboard.summary import Writer

    if any(folder.glob("events.out.tfevents.*")):
        return
    partial = folder / "partial"
    shutil.rmtree(partial, ignore_errors=True)  # of a killed process
    partial.mkdir(parents=True)
    writer = Writer(str(partial))
    for epoch, row in enumerate(history):
        for name, value in row.items():
            writer.add_scalar(f"reward/{name}", value, step=epoch)
    for step in results["accepted"]:
        if "val_score" in step:
            writer.add_scalar("search/val_score", step["val_score"], step=step["iteration"])
    for name in ("baseline", "optimized"):
        writer.add_scalar(f"test/{name}", results[name]["mean"], step=0)
    for name, row in results["alignment"].items():
        writer.add_scalar(f"alignment/{name}", row["pair_accuracy"], step=0)
    writer.close()
    for file in partial.iterdir():
        file.rename(folder / file.name)
    partial.rmdir()
