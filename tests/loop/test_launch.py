"""The command itself, in processes of its own, on the smoke variant."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from runs import ROOT


def start(workdir: Path, *flags: str, variant: str = "smoke", hash_seed: int = 0) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "launch/run.py",
        f"--config=configs/hotpotqa.py:{variant}",
        f"--workdir={workdir}",
        *flags,
    ]
    keyless = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}
    environment = {**keyless, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": str(hash_seed), "COLUMNS": "120"}
    # What a shell starts in the background ignores interrupts, and so would the run that these tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **streams)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def wait_for_completions(workdir: Path, count: int) -> None:
    """Until the tape has ``count`` completions."""
    for _ in range(2400):
        if (workdir / "tape.sqlite").is_file():
            with sqlite3.connect(workdir / "tape.sqlite", timeout=10) as db:
                tables = db.execute("SELECT COUNT(*) FROM sqlite_master WHERE name = 'effects'").fetchone()[0]
                if tables and db.execute("SELECT COUNT(*) FROM effects").fetchone()[0] >= count:
                    return
        time.sleep(0.05)
    raise TimeoutError(f"no {count} completions in {workdir}")


def scores(workdir: Path) -> dict[str, Any]:
    results = json.loads((workdir / "results.json").read_text())
    return {name: results[name] for name in ("baseline", "optimized", "gain", "by_kind", "alignment", "accepted")}


def completions(workdir: Path) -> dict[str, str]:
    with sqlite3.connect(workdir / "tape.sqlite") as db:
        return {key: json.loads(result)["text"] for key, result in db.execute("SELECT key, result FROM effects")}


LITTLE = (
    "--config.optimize.components=answer_generator",
    "--config.optimize.iterations=1",
    "--config.offline.inputs=8",
    "--config.data.train=8",
    "--config.data.val=4",
    "--config.data.test=8",
    "--config.data.confirm=4",
)


@pytest.mark.parametrize(
    ("flags", "concurrency", "interrupted", "killed"),
    [
        pytest.param(LITTLE, (4, 2, 3), 20, 60, id="little data"),
        pytest.param((), (16, 4, 16), 40, 200, id="all data"),
    ],
)
@pytest.mark.long
def test_interrupted_and_killed_at_other_hash_seeds_and_concurrency_it_ends_as_the_straight_run(
    tmp_path: Path, flags: tuple[str, ...], concurrency: tuple[int, int, int], interrupted: int, killed: int
) -> None:
    """``interrupted`` and ``killed`` count the completions that the run has by then."""
    code, output = finish(start(tmp_path / "straight", *flags, "--config.concurrency=1"))
    assert code == 0 and "baseline" in output, output

    first, second, third = (f"--config.concurrency={number}" for number in concurrency)
    workdir = tmp_path / "broken"
    process = start(workdir, *flags, first, hash_seed=1)
    wait_for_completions(workdir, interrupted)
    process.send_signal(signal.SIGINT)
    code, output = finish(process)
    assert code == 130 and "the same command resumes" in output and "Traceback" not in output, output

    process = start(workdir, *flags, second, hash_seed=2)
    wait_for_completions(workdir, killed)
    process.kill()
    finish(process)

    code, output = finish(start(workdir, *flags, third, hash_seed=3))
    assert code == 0, output
    assert scores(workdir) == scores(tmp_path / "straight")
    assert completions(workdir) == completions(tmp_path / "straight")


@pytest.mark.parametrize(
    ("flags", "variant", "message"),
    [
        ((), "paper", "openai:gpt-4o-mini needs a key: set OPENAI_API_KEY"),
        (("--config.optimize.components=nobody",), "smoke", "tunable are question_rewriter"),
        (("--config.data.path=/nowhere.jsonl",), "local", "no file '/nowhere.jsonl'"),
        (("--config.optimize.mode=fast",), "smoke", "'paper', 'improved'"),
        (
            (),
            "smok",
            "unknown variant 'smok' of configs/hotpotqa.py; did you mean 'smoke'? known: embedded, tiny, smoke",
        ),
        (("--config.seeed=1",), "smoke", "config has no field 'seeed'; did you mean 'seed'?"),
        (("--stage=aling",), "smoke", "all|probe|collect|train|optimize|evaluate|refresh|align"),
        (("--config=configs/nope.py",), "smoke", "Give a configuration of your own, or one of configs/amazon.py"),
    ],
)
def test_what_cannot_work_ends_at_once_and_says_why(
    tmp_path: Path, flags: tuple[str, ...], variant: str, message: str
) -> None:
    code, output = finish(start(tmp_path / "run", *flags, variant=variant))
    assert code == 1 and message in output and "Traceback" not in output, output
