"""``:smoke`` as a command, with a local model or behind a server, and what such a run leaves."""

import hashlib
import json
import os
import signal
import subprocess
import sys

from runs import ROOT

TOGETHER = 64


def of_server(address):
    """Flags of a run whose models are behind a server."""
    return (
        f"--config.concurrency={TOGETHER}",
        f"--config.server.base_url={address}/v1",
        "--config.system.language_model.model=openai:stub",
        "--config.proposer.model=openai:stub",
    )


def start(workdir, *flags):
    command = [sys.executable, "launch/run.py", "--config=configs/hotpotqa.py:smoke", f"--workdir={workdir}", *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENAI_API_KEY": "sk-planted-key", "COLUMNS": "120"}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finish(process):
    output, _ = process.communicate(timeout=600)
    return process.returncode, output


def outcome(folder):
    """What a run leaves, but for times and the bill."""
    results = json.loads((folder / "results.json").read_text())
    for name in ("wall_seconds", "peak_rss_mb", "versions", "paid_calls", "spent"):
        results.pop(name, None)
    for row in (row for phase in results["ledger"].values() for row in phase.values()):
        del row["paid_calls"], row["seconds"]
    for point in results["pareto"]:
        del point["seconds"], point["dominated"]  # which seconds may decide
    journal = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    events = [{name: event[name] for name in event if name not in ("time", "seconds")} for event in journal]
    best = {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((folder / "best").rglob("*"))
        if path.is_file()
    }
    return {"results": results, "journal": events, "best": best}
