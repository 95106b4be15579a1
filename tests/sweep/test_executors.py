"""Where points run: the choice and what it lacks, device sets, what Ray and Slurm are asked for, and resuming."""

from __future__ import annotations

import asyncio
import fcntl
import importlib
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
from runs import RESULTS

from optimas_jax.sweep.executors import local, ray_cluster, ray_task, slurm
from optimas_jax.sweep.executors.base import Resources
from optimas_jax.sweep.executors.choose import make_executor
from optimas_jax.sweep.executors.ray_cluster import task_resources
from optimas_jax.sweep.executors.ray_task import PointKilledError, run_point
from optimas_jax.sweep.executors.slurm import array_script
from optimas_jax.sweep.locks import hold, is_held, wait_for_run
from optimas_jax.sweep.points import SweepError


def test_what_an_executor_lacks_is_an_error_with_the_way_out(monkeypatch):
    with pytest.raises(SweepError, match="--executor is 'k8s'; allowed: local, slurm, ray"):
        make_executor("k8s", Resources())
    with pytest.raises(SweepError, match="--sbatch='--time=1' is for --executor=slurm alone"):
        make_executor("local", Resources(), "--time=1")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SweepError, match="needs sbatch and squeue: start the sweep on a login node"):
        make_executor("slurm", Resources())
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SweepError, match=r"needs the extra ray: pip install 'optimas_jax\[ray\]'"):
        make_executor("ray", Resources())


def test_an_address_of_ray_that_cannot_be_used_is_refused_at_once(monkeypatch):
    for address in ("local", "ray://host:10001"):
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(SweepError, match=r"expected HOST:PORT of a cluster"):
            ray_cluster.connect(None)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(SweepError, match=r"no Ray cluster at 127\.0\.0\.1:1 .*ray start --head"):
        ray_cluster.connect(None)


def test_usage_reports_are_off_before_ray_is_loaded(monkeypatch):
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    monkeypatch.setattr(importlib, "import_module", lambda name: os.environ["RAY_USAGE_STATS_ENABLED"])
    assert ray_cluster.load_ray() == "0"
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED")


def test_a_task_asks_for_the_accelerators_that_the_cluster_has():
    assert task_resources(Resources(cpus=4), [{"CPU": 8}]) == {"num_cpus": 4}
    assert task_resources(Resources(), [{"CPU": 8}, {"CPU": 8, "GPU": 4}]) == {"num_cpus": 1, "num_gpus": 1}
    assert task_resources(Resources(devices=0), [{"CPU": 8, "GPU": 4}]) == {"num_cpus": 1}
    assert task_resources(Resources(devices=2), [{"CPU": 8, "TPU": 4}]) == {"num_cpus": 1, "resources": {"TPU": 2}}
    with pytest.warns(UserWarning, match=r"no machine of the Ray cluster has \{'CPU': 1, 'GPU': 2\}: points wait"):
        task_resources(Resources(devices=2), [{"CPU": 8, "GPU": 1}])


class Module:
    """In the place of ``run_module``: ends with a code, and notes what it was asked for."""

    def __init__(self, code=0, message=""):
        self.code, self.message, self.asked = code, message, []

    async def __call__(self, module, arguments, log, **options):
        self.asked.append((arguments, options))
        await asyncio.sleep(0.01)
        return self.code, self.message


def test_local_jobs_have_devices_of_their_own(tmp_path, monkeypatch):
    module = Module()
    monkeypatch.setattr(local, "run_module", module)
    monkeypatch.setattr(local, "accelerators", lambda environment: local_gpus("0", "1"))
    executor = make_executor("local", Resources(jobs=2))
    with executor.open(tmp_path, ["a", "b", "c"], 7) as runner:

        async def both():
            await asyncio.gather(runner("a"), runner("b"))
            await runner("c")

        asyncio.run(both())
    seen = [options["variables"]["CUDA_VISIBLE_DEVICES"] for _, options in module.asked]
    assert sorted(seen[:2]) == ["0", "1"] and module.asked[0][1]["inherit"] == [7]
    with pytest.raises(SweepError, match="3 x 1 is more than the 2 GPUs of this machine"):
        make_executor("local", Resources(jobs=3))


def local_gpus(*names):
    from optimas_jax.parallel.visible import GPU, Accelerators

    return Accelerators(GPU, names)


def test_a_worker_runs_what_the_sweep_that_holds_the_folder_asks_for(tmp_path, monkeypatch):
    folder, name, cwd = str(tmp_path), "a", str(tmp_path)
    code, message = run_point(folder, name, cwd, {})
    assert code == 1 and f"does not see {folder}: start the sweep in, and with a --workdir in," in message
    (tmp_path / name).mkdir()
    code, message = run_point(folder, name, cwd, {})  # another folder of the same name, or locks that do not reach
    assert code == 1 and "locks of its file system do not hold between machines" in message
    with hold(tmp_path):
        monkeypatch.setattr(ray_task, "run_module", Module(1, "no room"))
        assert run_point(folder, name, cwd, {}) == (1, "no room")
        for code in (-9, 130):
            monkeypatch.setattr(ray_task, "run_module", Module(code))
            with pytest.raises(PointKilledError, match=r"killed on \S+ \((signal 9|interrupted)\)"):
                run_point(folder, name, cwd, {})


def test_a_point_that_cannot_be_run_by_ray_is_told_in_a_line():
    error = RuntimeError("ray wraps it")
    error.cause = PointKilledError("killed on a (signal 9), see log.txt")
    assert ray_cluster._message(error) == ("killed on a (signal 9), see log.txt, 3 times; the same command tries again")
    error.cause = ModuleNotFoundError("No module named 'optimas_jax'")
    assert "install optimas_jax of the same version there" in ray_cluster._message(error)


def test_the_script_of_an_array_names_points_and_resources(tmp_path):
    names = ["kind=strict,seed=0", "it's"]
    text = array_script(tmp_path / "100%", names, Resources(jobs=2, cpus=4, devices=1))
    assert "#SBATCH --array=0-1%2\n" in text and "#SBATCH --gpus=1\n" in text and "#SBATCH --cpus-per-task=4\n" in text
    assert f'#SBATCH --output="{tmp_path}/100%%/slurm/%A_%a.txt"\n' in text
    shown = text.replace(f"exec {sys.executable} -m", "echo")
    done = subprocess.run(
        ["bash", "-c", shown], env={"SLURM_ARRAY_TASK_ID": "1"}, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"optimas_jax.sweep.point {tmp_path}/100% it's\n"
    bare = array_script(tmp_path, names, Resources(devices=0))
    assert "#SBATCH --array=0-1\n" in bare and "gpus" not in bare and "export JAX_PLATFORMS=cpu\n" in bare


class Queue:
    """``sbatch`` and ``squeue``: arrays, and their tasks that are left."""

    def __init__(self):
        self.left, self.commands = {}, []

    def __call__(self, command, **options):
        self.commands.append(command)
        if command[0] == "sbatch":
            number = str(100 + len(self.left))
            text = Path(command[-1]).read_text(encoding="utf-8")
            self.left[number] = [*range(int(text.split("--array=0-")[1].split("\n")[0]) + 1)]
            return types.SimpleNamespace(returncode=0, stdout=f"{number};cluster\n", stderr="")
        [job] = [word.partition("=")[2] for word in command if word.startswith("--jobs=")]
        if job not in self.left:
            return types.SimpleNamespace(returncode=1, stdout="", stderr="error: Invalid job id specified")
        return types.SimpleNamespace(returncode=0, stdout="\n".join(map(str, self.left[job])), stderr="")


@pytest.fixture
def queue(monkeypatch):
    queue = Queue()
    monkeypatch.setattr(slurm.subprocess, "run", queue)
    monkeypatch.setattr(slurm.shutil, "which", lambda name: name)
    monkeypatch.setattr(slurm, "_LOOK_SECONDS", -1.0)
    monkeypatch.setattr(slurm, "_RESULT_SECONDS", 0.001)
    return queue


def end(folder, name):
    (folder / name).mkdir()
    (folder / name / "results.json").write_text(json.dumps(RESULTS))


def test_an_array_has_the_points_that_no_earlier_one_still_runs(tmp_path, queue):
    names = ["a", "b", "c"]
    with make_executor("slurm", Resources(), "--time=1:00").open(tmp_path, names, 0):
        pass  # killed
    assert queue.commands[-1][:3] == ["sbatch", "--parsable", "--time=1:00"]
    end(tmp_path, "a")
    queue.left["100"] = [1]  # b runs, and c has failed
    with make_executor("slurm", Resources()).open(tmp_path, ["b", "c", "d"], 0):
        pass
    assert (tmp_path / "slurm" / "jobs.json").read_text().split() == (
        ["{", '"100":', "{", '"1":', '"b"', "},", '"101":', "{", '"0":', '"c",', '"1":', '"d"', "}", "}"]
    )
    queue.left = {"100": [], "101": []}
    end(tmp_path, "b")
    (tmp_path / "slurm" / "102_0.txt").write_text("begins\n\nerror: no room\nat all\n")
    with make_executor("slurm", Resources()).open(tmp_path, ["c", "d"], 0) as runner:
        queue.left["102"] = []
        assert asyncio.run(runner("c")) == (1, "no room\nat all")
        code, message = asyncio.run(runner("d"))
        assert code == 1 and "task 102_1 left no result: see " in message and "sacct -j 102_1" in message


def test_a_queue_that_does_not_answer_is_waited_for(tmp_path, queue, monkeypatch):
    silent = types.SimpleNamespace(returncode=1, stdout="", stderr="Unable to contact slurm controller")
    assert slurm.tasks_left("7") == set()
    monkeypatch.setattr(slurm.subprocess, "run", lambda command, **options: silent)
    assert slurm.tasks_left("7") is None
    with (
        pytest.raises(SweepError, match=r"sbatch --parsable --mem=2G \S+ failed: Unable to contact"),
        make_executor("slurm", Resources(), "--mem=2G").open(tmp_path, ["a"], 0),
    ):
        pass


def test_locks_of_the_sweep_and_of_a_run(tmp_path):
    assert not is_held(tmp_path)
    with hold(tmp_path):
        assert is_held(tmp_path)
        with pytest.raises(TimeoutError), hold(tmp_path, 0.0):
            pass
    assert not is_held(tmp_path)
    holder = "import fcntl, sys, time; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); "
    process = subprocess.Popen(
        [sys.executable, "-c", holder + "sys.stdin.read()", str(tmp_path / ".lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    process.stdout.readline()
    wait_for_run(tmp_path, 0.2)  # in vain
    with open(tmp_path / ".lock", "a") as file, pytest.raises(OSError):
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    process.communicate()
    wait_for_run(tmp_path)
