"""Check against paying twice: a run folder with results of calls must not have an empty tape."""

from __future__ import annotations

from optimas_jax.core.folder.files import FolderError
from optimas_jax.llm.tapes.tape import Tape
from optimas_jax.loop.journal import RUN, RunFolder

_BILLS = ("used.json", "spent.json")  # files with costs by stage or step


def check_tape(folder: RunFolder, tape: Tape) -> None:
    """Compares a new tape with the calls that the files of the folder count.

    Raises:
      FolderError: the tape is empty, and the folder has results of calls.
    """
    if not tape.is_new:
        return
    if calls := calls_told(folder):
        raise FolderError(
            f"the tape {tape.path} is empty, and {folder.path} has results of {calls:,} calls: this command would pay "
            "for them again. Put the tape back as it was; or use another --workdir, where all is paid for again"
        )


def calls_told(folder: RunFolder) -> int:
    """The largest number of calls in a file of the folder: bills, the journal, and the records of commands."""
    record = folder.read(RUN) or {}
    counts = [part.get("paid_calls", 0) for part in record.get("parts", ())]
    counts += [usage["calls"] for name in _BILLS for usage in (folder.read(name) or {}).values()]
    counts += [event["calls"] for event in folder.events if isinstance(event.get("calls"), int)]
    return max(counts, default=0)
