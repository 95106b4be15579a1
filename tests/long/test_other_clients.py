"""litellm and instructor, unchanged, against the server. They have an environment of their own:

python -m venv V && V/bin/pip install litellm instructor
OPTIMAS_CLIENTS_PYTHON=V/bin/python python -m pytest -m long tests/long/test_other_clients.py
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from served import serving

PROGRAM = Path(__file__).parent / "clients_program.py"
pytestmark = pytest.mark.long


def test_clients_that_people_use_work_unchanged():
    python = os.environ.get("OPTIMAS_CLIENTS_PYTHON", sys.executable)
    here = subprocess.run([python, "-c", "import litellm, instructor"], check=False, capture_output=True)
    if here.returncode:
        pytest.skip("litellm and instructor are not installed: set OPTIMAS_CLIENTS_PYTHON to an interpreter with them")
    with serving(tiny.sampler(), "m") as url:
        done = subprocess.run(
            [python, str(PROGRAM), f"{url}/v1"], check=False, capture_output=True, text=True, timeout=300
        )
    assert done.returncode == 0, done.stderr[-3000:]
