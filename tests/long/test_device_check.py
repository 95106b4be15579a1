"""The script that measures an accelerator, on a machine without one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from runs import ROOT

pytestmark = pytest.mark.long


def test_without_an_accelerator_it_measures_a_tiny_model_and_says_what_it_would_measure(tmp_path):
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "JAX_PLATFORMS": "cpu"}
    command = ["bash", str(ROOT / "launch" / "device_check.sh"), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=480, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no accelerator: a GPU or TPU would be measured with an 8B model" in done.stdout
    rows = json.loads((tmp_path / "device.json").read_text())
    device, step, again, one, eight = rows
    assert device["kind"] == "cpu" and device["weights"] > 0
    assert not step["remat"] and again["remat"] and again["predicted"] < step["predicted"]
    assert step["seconds"] > 0 and [one["rows"], eight["rows"]] == [1, 8]
    assert one["tokens_per_second"] > 0
