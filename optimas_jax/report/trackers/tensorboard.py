"""TensorBoard: event files in ``tensorboard/`` of the run's folder, written as events happen."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from optimas_jax.core.folder.events import Begin, End
from optimas_jax.report.trackers.extras import library
from optimas_jax.report.trackers.points import Entry


class TensorBoard:
    """A new event file for each command; TensorBoard shows the files of a folder as one run."""

    def check(self) -> None:
        """Does nothing: TensorBoard is always installed."""

    def begin(self, begin: Begin, known: str) -> str:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(str(Path(begin.folder) / "tensorboard"))
        return "tensorboard"

    def log(self, one: Entry) -> None:
        from tensorboard.plugins.scalar.summary_v2 import scalar_pb
        from tensorboard.plugins.text.summary_v2 import text_pb

        for point in one.points:
            self._add(scalar_pb(point.name, point.value), point.step)
        for name, text in one.texts.items():
            self._add(text_pb(name, text), one.position.iteration)
        self._writer.flush()

    def end(self, end: End) -> None:
        self._writer.close()

    def _add(self, summary: Any, step: int) -> None:
        self._writer.add_event(
            library("tensorboard.compat.proto.event_pb2").Event(wall_time=time.time(), step=step, summary=summary)
        )
