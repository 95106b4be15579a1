"""Files of a run that ends early: ``best/`` as it is so far, and the reason with the command that resumes the run."""

from __future__ import annotations

from optimas_jax.core.values import Configuration
from optimas_jax.loop.folder.record import Record
from optimas_jax.loop.journal import BEST, CONFIGURATION, RESULTS, UNFINISHED


def leave_unfinished(record: Record, default: Configuration, error: BaseException) -> None:
    """Writes the state of a run that an error or an interrupt ends: the reason, the accepted changes, the costs, and
    the command that resumes it. Nothing is written for a run that has paid for nothing, or has its results.

    Args:
      default: the configuration before any change, saved as ``best/`` where nothing was accepted.
    """
    folder = record.folder
    if folder.is_unused() or folder.read(RESULTS) is not None:
        return
    if not (folder.path / BEST).is_dir():
        folder.save_best(default, {"accepted": [], "confirmed": None})
    reason = "" if isinstance(error, KeyboardInterrupt) else f": {error}"
    state = {
        "reason": f"{type(error).__name__}{reason}",
        "accepted": (folder.read(f"{BEST}/{CONFIGURATION}") or {}).get("accepted", []),
        "spent": record.ledger.spent.to_json(),
        "uncertain": record.tape.uncertain().to_json(),
        "go_on": record.command,
    }
    folder.write(UNFINISHED, state)
