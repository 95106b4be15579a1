"""Sweeps over machines, for tests: a counting server's command, a Ray cluster on loopback, a stand-in for Slurm."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from runs import ROOT

CONCURRENCY = 4  # requests in flight of each point

# Starts the tasks of an array as processes of this machine, at most as many at a time as it says.
SBATCH = """#!{python}
import os, pathlib, re, subprocess, sys
jobs = pathlib.Path(os.environ["FAKE_SLURM"])
script = pathlib.Path(sys.argv[-1])
options = dict(line[10:].partition("=")[::2] for line in script.read_text().splitlines() if line.startswith("#SBATCH"))
first, last, most = map(int, re.fullmatch(r"(\\d+)-(\\d+)%(\\d+)", options["array"]).groups())
number = str(len(list(jobs.glob("*.left"))) + 1)
left = jobs / (number + ".left")
left.write_text(" ".join(map(str, range(first, last + 1))))
copy = jobs / (number + ".sh")  # as Slurm does
copy.write_text(script.read_text())
print(number, flush=True)
if os.fork():
    os._exit(0)
os.setsid()
null = os.open(os.devnull, os.O_RDWR)
for stream in (0, 1, 2):
    os.dup2(null, stream)
waiting, running = list(range(first, last + 1)), {{}}
while waiting or running:
    while waiting and len(running) < most:
        task = waiting.pop(0)
        log = options["output"].strip('"').replace("%A", number).replace("%a", str(task))
        env = {{**os.environ, "SLURM_ARRAY_TASK_ID": str(task)}}
        sink = open(log, "ab")
        running[task] = subprocess.Popen(["bash", str(copy)], stdout=sink, stderr=sink, env=env)
    pid, _ = os.waitpid(-1, 0)
    running = {{task: process for task, process in running.items() if process.pid != pid}}
    left.write_text(" ".join(map(str, sorted([*waiting, *running]))))
"""
SQUEUE = """#!{python}
import os, pathlib, sys
[job] = [one.partition("=")[2] for one in sys.argv if one.startswith("--jobs=")]
left = pathlib.Path(os.environ["FAKE_SLURM"]) / (job + ".left")
if not left.exists():
    sys.exit("slurm_load_jobs error: Invalid job id specified")
print(left.read_text().replace(" ", chr(10)))
"""


def command(address: str, workdir: Path, *more: str) -> list[str]:
    """Eight points of ``:smoke``, whose models answer at ``address``."""
    return [
        sys.executable,
        str(ROOT / "launch" / "sweep.py"),
        f"--config={ROOT / 'configs' / 'hotpotqa.py'}:smoke",
        "--config.system.language_model.model=openai:counted",
        "--config.proposer.model=openai:counted",
        f"--config.server.base_url={address}/v1",
        f"--config.concurrency={CONCURRENCY}",
        "--sweep=optimize.gate.kind=strict,paired seed=0:4",
        f"--workdir={workdir}",
        *more,
    ]


def environment() -> dict[str, str]:
    return {**os.environ, "OPENAI_API_KEY": "x", "PYTHONPATH": str(ROOT)}


@contextlib.contextmanager
def ray_cluster(cpus: int, port: int) -> Iterator[dict[str, str]]:
    """A Ray cluster of this machine that listens on loopback alone; yields the environment that finds it."""
    loopback = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # else Ray takes the address of a network
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    found = {**environment(), **loopback, **token, "RAY_USAGE_STATS_ENABLED": "0"}
    options = ("--node-ip-address=127.0.0.1", "--include-dashboard=false", "--disable-usage-stats", "--block")
    with tempfile.TemporaryDirectory(prefix="ray") as folder:  # of a short name: sockets lie in it
        arguments = (f"--temp-dir={folder}", f"--port={port}", f"--num-cpus={cpus}", "--object-store-memory=80000000")
        start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", *options, *arguments]
        with Path(folder, "log").open("wb") as log:
            process = subprocess.Popen(start, env=found, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait(lambda: b"runtime started" in Path(folder, "log").read_bytes(), process)
            yield {**found, "RAY_ADDRESS": f"127.0.0.1:{port}"}
        finally:
            process.terminate()  # and it ends what it has started
            process.wait()


def fake_slurm(folder: Path) -> dict[str, str]:
    """An environment with stand-ins for ``sbatch`` and ``squeue``."""
    folder.mkdir()
    for name, text in (("sbatch", SBATCH), ("squeue", SQUEUE)):
        (folder / name).write_text(text.format(python=sys.executable))
        (folder / name).chmod(0o755)
    return {**environment(), "FAKE_SLURM": str(folder), "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


def wait(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    """Waits for something that happens while a process lives."""
    while not condition():
        assert process.poll() is None, f"it ended with {process.returncode}"
        time.sleep(0.1)


def points(workdir: Path) -> dict[int, str]:
    """Processes that run points of a sweep: their names by process."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().decode().split("\0")
            if "optimas_jax.sweep.point" in words and str(workdir) in words:
                found[int(path.parent.name)] = words[words.index(str(workdir)) + 1]
    return found


def parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def start(arguments: list[str], variables: Mapping[str, str]) -> subprocess.Popen:
    return subprocess.Popen(arguments, cwd=ROOT, env=variables, stdout=subprocess.DEVNULL)


def run(arguments: list[str], variables: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, check=False, cwd=ROOT, env=variables, capture_output=True, text=True)


def kill(process: int) -> None:
    os.kill(process, signal.SIGKILL)
