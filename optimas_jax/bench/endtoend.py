"""Times whole runs at two commits, one after the other: same configuration and seed, new folders, empty caches."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from optimas_jax.bench.peer import ROOT, SideError
from optimas_jax.bench.report import Row


def run_end_to_end(
    config: str, baseline: str, line: Callable[[str], None], overrides: Sequence[str] = (), root: Path = ROOT
) -> Row:
    """Runs ``launch/run.py --config=CONFIG`` of this work tree and, if given, of commit ``baseline``.

    Args:
      overrides: NAME=VALUE for both runs; ``seed=1`` stands for ``--config.seed=1``.

    Raises:
      SideError: if the commit cannot be checked out, or a run fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        flags = [f"--config={config}", *(f"--config.{override}" for override in overrides)]
        ours, results = _run("ours", root, flags, Path(folder) / "ours", line)
        runs = {"ours": results}
        theirs = None
        if baseline:
            with checkout(baseline, Path(folder) / "tree", root) as tree:
                theirs, runs["peer"] = _run(baseline, tree, flags, Path(folder) / "baseline", line)
    return Row(
        suite="e2e",
        case=" ".join([config, *overrides]),
        unit="runs/h",
        ours=3600 / ours,
        peer=theirs and 3600 / theirs,
        peer_name=baseline or None,
        ratio=theirs and theirs / ours,
        spread=dict.fromkeys(runs, 0.0),  # one run each
        roofline_fraction=None,
        peak_mb={side: result["peak_rss_mb"] for side, result in runs.items()},
        agreement=None,
        notes={side: _summary(result) for side, result in runs.items()},
    )


@contextlib.contextmanager
def checkout(commit: str, target: Path, root: Path) -> Iterator[Path]:
    """A work tree of ``commit`` at ``target``, removed afterwards."""
    git = ["git", "-C", str(root), "worktree"]
    added = subprocess.run([*git, "add", "--detach", str(target), commit], capture_output=True, text=True, check=False)  # noqa: S603
    if added.returncode:
        raise SideError(f"git cannot check out {commit!r}:\n{added.stderr.strip()}")
    try:
        yield target
    finally:
        subprocess.run([*git, "remove", "--force", str(target)], capture_output=True, check=False)  # noqa: S603


def _run(
    name: str, tree: Path, flags: Sequence[str], workdir: Path, line: Callable[[str], None]
) -> tuple[float, dict[str, Any]]:
    """Seconds of a run from start to end of its process, and its ``results.json``."""
    if not (tree / "launch" / "run.py").is_file():
        raise SideError(f"{tree} has no launch/run.py: whole runs are measured in a checkout")
    environment = {**os.environ, "PYTHONPATH": str(tree), "JAX_COMPILATION_CACHE_DIR": f"{workdir}-xla"}
    command = [sys.executable, "launch/run.py", *flags, f"--workdir={workdir}"]
    start = time.monotonic()
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
    seconds = time.monotonic() - start
    if done.returncode:
        raise SideError(f"{' '.join(command)} failed at {name}:\n{(done.stdout + done.stderr)[-2000:]}")
    results = json.loads((workdir / "results.json").read_text(encoding="utf-8"))
    line(f"  {name}: {seconds:.0f} s, {_summary(results)}")
    return seconds, results


def _summary(results: dict[str, Any]) -> str:
    before, after = results["baseline"], results["optimized"]
    return f"{_score(before)} before, {_score(after)} after"


def _score(part: dict[str, Any]) -> str:
    return f"{part['mean']:.3f} [{part['ci95'][0]:.3f}, {part['ci95'][1]:.3f}]"
