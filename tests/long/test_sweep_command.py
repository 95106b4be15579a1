"""A sweep by its command, on a server that counts: killed twice, resumed, and equal requests paid once."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from api_servers import ApiServers
from runs import ROOT
from served import serving_app

pytestmark = pytest.mark.long


def command(address, workdir):
    return [
        sys.executable,
        str(ROOT / "launch" / "sweep.py"),
        f"--config={ROOT / 'configs' / 'hotpotqa.py'}:smoke",
        "--config.system.language_model.model=openai:counted",
        "--config.proposer.model=openai:counted",
        f"--config.server.base_url={address}/v1",
        "--sweep=optimize.gate.kind=strict,paired seed=0:2",
        "--jobs=2",
        f"--workdir={workdir}",
    ]


def test_a_sweep_that_is_killed_twice_goes_on_and_equal_requests_are_paid_once(tmp_path):
    servers = ApiServers()
    environment = {**os.environ, "OPENAI_API_KEY": "x", "PYTHONPATH": str(ROOT)}
    with serving_app(servers.app) as address:
        arguments = command(address, tmp_path)
        for index, stop in enumerate((signal.SIGKILL, signal.SIGTERM)):
            process = subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
            while len(servers.bodies) < 100 * (index + 1) and process.poll() is None:
                time.sleep(0.1)
            process.send_signal(stop)
            process.wait()
        done = subprocess.run(arguments, check=False, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        asked = [json.dumps(body, sort_keys=True) for body in servers.bodies]
        assert not servers.problems
        again = subprocess.run(arguments, check=False, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert again.returncode == 0 and len(servers.bodies) == len(asked)
    # A request in flight when its process was killed is asked again; those that were answered are not.
    assert len(asked) - len(set(asked)) <= 2 * 2 * 128
    rows = list(csv.DictReader((tmp_path / "sweep.csv").read_text().splitlines()))
    assert len(rows) == 4 and not any(row["error"] for row in rows)
    assert "| kind=strict | 2/2 |" in (tmp_path / "sweep.md").read_text()
    assert (tmp_path / "optimize.gate.kind.png").read_bytes().startswith(b"\x89PNG")
    numbers = [word.replace(",", "") for word in done.stdout.split()]
    [used, paid] = [int(number) for number in numbers if number.isdecimal()][-2:]
    assert paid == len(set(asked)) < used
