"""A worker process that answers one JSON object per line. Standard library only, for the environments of all peers.

``{"prepare": work}`` loads, compiles and warms up; the answer is ``{"note": chosen settings}``. ``{"run": i}`` does
repeat ``i``; the answer is ``{"seconds": s, "output": [...]}``. Every answer has ``peak_mb``, without memory that only
``prepare`` needed. The answer to a message that failed is ``{"error": traceback}``. The end of standard input ends the
process. Between messages the process is idle, so that the other side can use the whole machine.
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
    """Answers messages until standard input ends. Output of libraries goes to standard error."""
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
    """Returns freed memory to the system and, on Linux, resets the peak, so that memory of ``prepare`` does not
    count."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_mb() -> float:
    """Peak resident memory of this process since ``forget_peak``.

    Not ``ru_maxrss`` on Linux, which starts at the parent's memory at the fork.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 2**10
    except (OSError, StopIteration):
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return used / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, kilobytes elsewhere
