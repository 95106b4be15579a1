"""Processes that do not find each other, a single one, and flags that would start something else than meant."""

import subprocess
import sys

import pytest
from processes import ROOT, environment, free_port

JOIN = """
from optimas_jax.parallel import distributed
distributed._TELL, distributed._GATHER = 0.5, 3
link = distributed.join("127.0.0.1:{port}", {count}, 0)
import threading
print(link.count, [thread.name for thread in threading.enumerate() if thread.name == "watch-processes"])
distributed.leave()
"""


def run(*command):
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment(1),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_process_whose_others_do_not_come_says_so_and_ends():
    ended = run("-c", JOIN.format(port=free_port(), count=2))
    assert ended.returncode == 75, ended.stderr
    first, *_, last = ended.stderr.strip().splitlines()
    assert first.startswith("waiting for the other processes (--coordinator=127.0.0.1:")
    assert last.startswith("error: the processes of this run did not find each other within 3 s: is --coordinator=")


def test_a_single_process_is_watched_by_nobody():
    assert run("-c", JOIN.format(port=free_port(), count=1)).stdout == "1 []\n"


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--num_processes=2", "error: --num_processes and --process_id need --coordinator=HOST:PORT"),
        ("--process_id=0", "error: --num_processes and --process_id need --coordinator=HOST:PORT"),
        ("--coordinator=", "error: --num_processes and --process_id need --coordinator=HOST:PORT"),
        ("--devices=v5e-16", "error: --devices=v5e-16 is for --plan: add it"),
    ],
)
def test_flags_that_do_not_belong_together_start_nothing(tmp_path, flag, message):
    ended = run("launch/run.py", "--config=configs/hotpotqa.py:smoke", f"--workdir={tmp_path / 'run'}", flag)
    assert ended.returncode == 1 and ended.stderr.strip().startswith(message), ended.stderr
    assert not (tmp_path / "run").exists()
