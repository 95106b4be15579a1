"""The side that works: a process that answers one JSON object a line. Standard library only, for every environment.

``{"prepare": work}`` loads, compiles and warms up, and is answered with what was chosen on the way (``{"note": ...}``);
``{"run": i}`` does repeat ``i`` and is answered ``{"seconds": s, "output": [...]}``. Answers carry ``peak_mb``, which
leaves out what only ``prepare`` needed. A failure is answered ``{"error": traceback}``; the end of standard input ends
the process. Between messages it waits for the next line, so that the other side has the machine to itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = Callable[[int], dict[str, Any]]
Prepare = Callable[[dict[str, Any]], tuple[Run, str]]  # work -> (run, note)


def serve(prepare: Prepare) -> None:
    """Answers until standard input ends. What libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    run: Run | None = None
    for line in sys.stdin:
        message = json.loads(line)
        try:
            if "prepare" in message:
                run, note = prepare(message["prepare"])
                answer: dict[str, Any] = {"note": note}
                forget_peak()
            elif run is None:
                answer = {"error": "asked to run before prepare"}
            else:
                answer = run(message["run"])
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps({**answer, "peak_mb": peak_mb()}), file=answers, flush=True)


def forget_peak() -> None:
    """Gives freed memory back and, on Linux, starts the peak anew: what was tried in ``prepare`` is not held against a
    side."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_mb() -> float:
    """Most resident memory of this process since ``forget_peak``.

    Linux's ``ru_maxrss`` starts at what the parent had when it forked, so it is read elsewhere there.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 2**10
    except (OSError, StopIteration):
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return used / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, kilobytes elsewhere
