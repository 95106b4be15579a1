"""Runs a peer: its program beside a desk (``compare.desk``), until it ends or the budget is used."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optimas_jax.compare.books import Books
from optimas_jax.compare.desk import Desk, open_desk
from optimas_jax.compare.optimizers import Peer
from optimas_jax.core.types import StopRun
from optimas_jax.loop.context import Run
from optimas_jax.loop.progress import ConsoleProgress

_RESULT = "peer.json"  # in the run folder, once the peer has ended
_SECRETS = ("KEY", "TOKEN", "SECRET", "PASSWORD")
_LINE_SECONDS = 60.0


class PeerError(StopRun):
    """A peer that ended on an error, with its last words."""


def run_peer(peer: Peer, run: Run) -> tuple[list[dict[str, Any]], str]:
    """Lets the peer search, and saves what it found as the run's ``best/``.

    A peer that was interrupted begins again, and finds what it had paid for on the tape.

    Returns:
      its curve, and a note about the configuration (``Books.result``).

    Raises:
      PeerError: if it fails before its budget is used.
    """
    done = run.folder.read(_RESULT)
    if done is not None:
        return done["curve"], done["note"]
    config, validation = run.config, [example.id for example in run.splits["val"]]
    books = Books(run.completer, config.optimize.max_tokens, run.system.default_configuration(), validation)
    desk = Desk(run.system.using(books.completer), books, config.proposer, run.splits, config.seed)
    with run.ledger.phase("optimize"), open_desk(desk) as address, (run.folder.path / "peer.log").open("wb") as log:
        _search(peer, address, desk, log, run.progress)
    configuration, note = books.result()
    run.folder.save_best(configuration, {"accepted": []})
    run.folder.write("optimized.json", {"reward": "", "alignment": {}, "accepted": []})
    run.folder.write(_RESULT, {"curve": books.curve, "note": note, **dataclasses.asdict(books.cost)})
    run.progress.line(f"  {books.cost.tokens:,} tokens of {books.budget:,}; {len(books.curve)} candidates {note}")
    return books.curve, note


def _search(peer: Peer, address: str, desk: Desk, log: Any, progress: ConsoleProgress) -> None:
    """Waits for the peer's end, which is also the budget's."""
    command = [*peer.command, address]
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=_environment(os.environ))  # noqa: S603 - our own scripts
    ended = threading.Event()
    threading.Thread(target=lambda: (process.wait(), ended.set()), daemon=True).start()
    said = time.monotonic()
    try:
        while not ended.wait(0.2) and not desk.spent.is_set():
            if time.monotonic() - said > _LINE_SECONDS:
                said = time.monotonic()
                progress.line(f"  {desk.books.cost.tokens:,} tokens of {desk.books.budget:,}")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if process.returncode and not desk.spent.is_set():
        words = Path(log.name).read_text(encoding="utf-8", errors="replace").strip()[-1500:]
        raise PeerError(f"the peer ended with exit code {process.returncode}; it said:\n{words or 'nothing'}")


def _environment(mine: Mapping[str, str]) -> dict[str, str]:
    """Ours without keys, which a peer does not need: all it asks for comes from the desk."""
    kept = {name: text for name, text in mine.items() if not any(word in name.upper() for word in _SECRETS)}
    return {**kept, "PYTHONUNBUFFERED": "1"}
