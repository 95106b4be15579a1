"""The files of launch/pod/, run by stubs of ``srun`` and ``kubectl`` that start their command in two processes here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import ROOT, environment, free_port

pytestmark = pytest.mark.long

POD = ROOT / "launch" / "pod"
FLAGS = ["--config=configs/hotpotqa.py:smoke"]

SRUN = """
import os, subprocess, sys
arguments = [one for one in sys.argv[1:] if not one.startswith(("--kill-on-bad-exit", "--cpus-per-task"))]
tasks = int(os.environ["SLURM_NTASKS"])
def start(task):
    own = {"SLURM_PROCID": str(task), "SLURM_LOCALID": "0", "SLURM_STEP_NODELIST": "localhost"}
    return subprocess.Popen(arguments, env={**os.environ, **own})
sys.exit(max(one.wait() for one in [start(task) for task in range(tasks)]))
"""

SCONTROL = """
import os, sys
if sys.argv[1:3] == ["show", "hostnames"]:
    print("127.0.0.1")
"""

KUBECTL = """
import os, subprocess, sys, yaml
assert sys.argv[1:3] == ["apply", "-f"]
job = next(part for part in yaml.safe_load_all(open(sys.argv[3])) if part["kind"] == "Job")["spec"]
[container] = job["template"]["spec"]["containers"]
def start(index):
    own = {one["name"]: one["value"] for one in container["env"] if "value" in one}
    own |= {"JOB_COMPLETION_INDEX": str(index), "OPTIMAS_JAX_CACHE": os.environ["DATA"] + "/cache"}
    own["COORDINATOR"] = os.environ["FIRST"]  # the cluster's names
    words = container["command"]
    for name, value in own.items():
        words = [word.replace(f"$({name})", value) for word in words]
    words = [sys.executable if word == "python" else word.replace("/data", os.environ["DATA"]) for word in words]
    return subprocess.Popen([*words, *os.environ["MORE"].split()], env={**os.environ, **own})
sys.exit(max(one.wait() for one in [start(index) for index in range(job["completions"])]))
"""


def stubs(folder: Path) -> dict[str, str]:
    """An environment whose ``srun``, ``scontrol`` and ``kubectl`` are stubs, and ``python`` is this one."""
    folder.mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "kubectl": KUBECTL}.items():
        (folder / name).write_text(f"#!{sys.executable}\n{text}")
        (folder / name).chmod(0o755)
    own = environment(2)
    return {**own, "PATH": f"{folder}:{Path(sys.executable).parent}:{own['PATH']}"}


def assert_finished(folder: Path) -> None:
    assert json.loads((folder / "results.json").read_text())["n"] > 0
    assert json.loads((folder / "run.json").read_text())["devices"]["count"] == 4


def test_a_batch_job(tmp_path):
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_NTASKS": "2"}
    job |= {"SLURM_JOB_NODELIST": "here[1-2]", "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_CPUS_PER_TASK": "1"}
    command = ["bash", str(POD / "slurm.sbatch"), *FLAGS, f"--workdir={tmp_path / 'run'}"]
    subprocess.run(command, check=True, env={**stubs(tmp_path / "bin"), **job}, timeout=3600)
    assert_finished(tmp_path / "run")


def test_pods_with_gpus(tmp_path):
    own = {"DATA": str(tmp_path), "FIRST": f"127.0.0.1:{free_port()}", "MORE": " ".join(FLAGS)}
    command = ["kubectl", "apply", "-f", str(POD / "kubernetes-gpu.yaml")]
    subprocess.run(command, check=True, env={**stubs(tmp_path / "bin"), **own}, cwd=ROOT, timeout=3600)
    assert_finished(tmp_path / "runs" / "kubernetes")


def test_pods_of_a_slice(tmp_path):
    """On a slice JAX finds the others by itself; here it is told, by the flags that come last."""
    first = f"127.0.0.1:{free_port()}"
    text = (POD / "gke-tpu.yaml").read_text().replace("completions: 4", "completions: 2")
    flags = f"--coordinator={first}", "--num_processes=2", "--process_id=$(JOB_COMPLETION_INDEX)"
    (tmp_path / "slice.yaml").write_text(
        text.replace("- --coordinator=auto", "\n            ".join(f"- {flag}" for flag in flags))
    )
    own = {"DATA": str(tmp_path), "FIRST": first, "MORE": " ".join(FLAGS)}
    command = ["kubectl", "apply", "-f", str(tmp_path / "slice.yaml")]
    subprocess.run(command, check=True, env={**stubs(tmp_path / "bin"), **own}, cwd=ROOT, timeout=3600)
    assert_finished(tmp_path / "runs" / "gke")
