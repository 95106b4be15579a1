"""Runs a peer: its program against a server (``compare.peer_server``), until it ends or the budget is used."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optimas_jax.compare.account import Account
from optimas_jax.compare.optimizers import Peer
from optimas_jax.compare.peer_server import SHOWN, PeerServer, read_configuration, serve
from optimas_jax.compare.state import Point, SearchState
from optimas_jax.core.progress import Progress
from optimas_jax.core.types import StopRun
from optimas_jax.loop.context import Run
from optimas_jax.loop.evaluate import NO_SEARCH
from optimas_jax.loop.journal import OPTIMIZED, load_best

_RESULT = "peer.json"  # in the run folder, once the peer has ended
_SECRETS = ("KEY", "TOKEN", "SECRET", "PASSWORD")
_LINE_SECONDS = 60.0


class PeerError(StopRun):
    """A peer that ended on an error, with the end of its log."""


def run_peer(peer: Peer, run: Run) -> tuple[SearchState, Sequence[Point], str]:
    """Lets the peer search, and saves its best configuration as the run's ``best/``.

    A peer that was interrupted begins again; what it had paid for is on the tape.

    Returns:
      Its best configuration, its curve, and a note (``Account.result``).

    Raises:
      PeerError: if it fails before its budget is used.
    """
    if run.host.folder.read(_RESULT) is None:
        _run(peer, run)
    result, configuration = run.host.folder.read(_RESULT) or {}, load_best(run.host.folder.path / "best")
    curve = result["curve"]
    chosen = {id: read_configuration(run.host.system, values) for id, values in result.get("chosen", {}).items()}
    if not curve:
        return SearchState(configuration, None, None, tokens=0, chosen=chosen), curve, result["note"]
    if chosen:  # which no validation score measures
        unseen = sum(len(rows) for split, rows in run.host.splits.items() if split not in SHOWN)
        note = f"prompts were chosen for {len(chosen)} of {unseen} unseen inputs" if len(chosen) < unseen else ""
        return SearchState(configuration, curve[0]["val_score"], None, curve[-1]["tokens"], chosen=chosen), curve, note
    best = max(point["val_score"] for point in curve)
    first = next(point for point in curve if point["val_score"] == best)
    state = SearchState(configuration, curve[0]["val_score"], best, first["tokens"])
    return state, curve, result["note"]


def _run(peer: Peer, run: Run) -> None:
    host, validation = run.host, [example.id for example in run.host.splits["val"]]
    account = Account(host.completer, host.max_tokens, host.system.default_configuration(), validation)
    server = PeerServer(host.system, account, run.config.proposer, host.splits, host.seed)
    log_path = host.folder.path / "peer.log"
    with host.ledger.phase("optimize"), serve(server) as address, log_path.open("wb") as log:
        _search(peer, address, server, log, host.progress)
    configuration, note = account.result()
    host.folder.save_best(configuration, {"accepted": []})
    host.folder.write(OPTIMIZED, dict(NO_SEARCH))
    result = {"curve": account.curve, "note": note, "chosen": server.chosen, **dataclasses.asdict(account.cost)}
    host.folder.write(_RESULT, result)
    tokens = f"{account.cost.tokens:,} of {account.budget:,} tokens"
    host.progress.line(f"  {tokens}; {len(account.curve)} candidates {note}")


def _search(peer: Peer, address: str, server: PeerServer, log: Any, progress: Progress) -> None:
    """Runs the program until it ends or the budget is used."""
    command = [*peer.command, address]
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=_environment(os.environ))  # noqa: S603 - our own scripts
    ended = threading.Event()
    threading.Thread(target=lambda: (process.wait(), ended.set()), daemon=True).start()
    shown = time.monotonic()
    try:
        while not ended.wait(0.2) and not server.spent.is_set():
            if time.monotonic() - shown > _LINE_SECONDS:
                shown = time.monotonic()
                progress.line(f"  {server.account.cost.tokens:,} tokens of {server.account.budget:,}")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if process.returncode and not server.spent.is_set():
        log_end = Path(log.name).read_text(encoding="utf-8", errors="replace").strip()[-1500:]
        raise PeerError(
            f"the peer ended with exit code {process.returncode}; the end of its log:\n{log_end or 'empty'}"
        )


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Our environment without keys: a peer reaches models only through the server."""
    kept = {name: text for name, text in variables.items() if not any(word in name.upper() for word in _SECRETS)}
    return {**kept, "PYTHONUNBUFFERED": "1"}
