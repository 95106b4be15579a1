"""The process inside the sandbox that runs unit tests against a program; ``sandbox.unittests`` starts it and reads its
report.

    python -s -P -c "... runner.main()" MESSAGE REPORT     descriptors: the work to do, and the channel for outcomes

Every outcome is reported at once, with a secret from the work, so that a failure cannot be revoked.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, NoReturn

from . import apart, outcomes, together
from .kernel import hide


def main() -> None:
    """Reads the work, runs its tests, reports ``done`` at the end, and exits without running exit handlers."""
    message, descriptor = int(sys.argv[1]), int(sys.argv[2])
    leave = os._exit
    hide()
    os.set_inheritable(message, False)
    os.set_inheritable(descriptor, False)
    if sys.argv[3] == "apart":  # before any part of the tests is in memory
        process, channel = apart.start([message, descriptor])
    work = _read(message)
    report = outcomes.reporter(descriptor, work.pop("secret"))

    def give_up(reason: str) -> NoReturn:
        report("", "together", reason)
        leave(0)

    try:
        if sys.argv[3] == "apart":
            apart.run(work, apart.Program(process, channel, give_up), report)
        else:
            together.run(work, report)
        report("", "done", "")
    except BaseException:
        report("", "failed", outcomes.text_of(*sys.exc_info()))
    finally:
        leave(0)


def _read(message: int) -> dict[str, Any]:
    with open(message, "rb") as file:
        return json.loads(file.read())
