"""Nothing is bought again without a word: a run folder whose tape is empty tells what was paid for."""

from __future__ import annotations

from optimas_jax.core.folder.files import FolderError
from optimas_jax.llm.tape import Tape
from optimas_jax.loop.journal import RUN, RunFolder

_BILLS = ("used.json", "spent.json")  # by stage or step


def check_tape(folder: RunFolder, tape: Tape) -> None:
    """Compares a tape with what the folder tells of it. Calls that it knows may all have had no result.

    Raises:
      FolderError: it holds nothing, and the folder has results of calls.
    """
    if not tape.is_new:
        return
    if calls := calls_told(folder):
        raise FolderError(
            f"the tape {tape.path} is empty, and {folder.path} has results of {calls:,} calls: this command would pay "
            "for them again. Put the tape back as it was; or use another --workdir, where all is paid for again"
        )


def calls_told(folder: RunFolder) -> int:
    """The most calls that a file of the folder tells of: bills, the journal, and what commands took."""
    record = folder.read(RUN) or {}
    counts = [part.get("paid_calls", 0) for part in record.get("parts", ())]
    counts += [usage["calls"] for name in _BILLS for usage in (folder.read(name) or {}).values()]
    counts += [event["calls"] for event in folder.events if isinstance(event.get("calls"), int)]
    return max(counts, default=0)
