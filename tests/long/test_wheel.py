"""The wheel in an environment of its own, used outside of the checkout."""

import email
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile

import pytest
from runs import ROOT

pytestmark = [pytest.mark.long, pytest.mark.embedded]


def call(command, folder, **environment):
    """Runs a command without anything of the checkout's or of this environment's; returns what it printed."""
    bare = {name: os.environ[name] for name in os.environ if name.startswith(("HOME", "PIP_", "SSL_", "JAX_", "LANG"))}
    bare = {**bare, "PATH": "/usr/local/bin:/usr/bin:/bin", "PYTHONPATH": "", **environment}
    started = time.monotonic()
    done = subprocess.run(command, cwd=folder, env=bare, capture_output=True, text=True, check=False)
    print(f"{' '.join(map(str, command))[-80:]}: {time.monotonic() - started:.0f} s")
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The ``bin`` folder of an environment with the wheel and what it requires."""
    folder = tmp_path_factory.mktemp("wheel")
    # A copy: another worker may build at the same time, and a build leaves files in its source.
    source = shutil.copytree(
        ROOT, folder / "source", ignore=shutil.ignore_patterns(".*", "tests", "build", "*.egg-info")
    )
    call([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, source], folder)
    call([sys.executable, "-m", "venv", folder / "venv"], folder)
    [wheel] = folder.glob("*.whl")
    call([folder / "venv" / "bin" / "pip", "install", "--quiet", wheel], folder)
    return folder / "venv" / "bin"


def test_the_wheel_says_what_it_is(installed):
    [wheel] = installed.parents[1].glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        about = email.message_from_bytes(archive.read(name))
        assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())
    assert (about["Name"], about["License-Expression"]) == ("optimas_jax", "Apache-2.0")
    assert about["Requires-Python"] == ">=3.11" and "Operating System :: POSIX :: Linux" in about.get_all("Classifier")
    assert about["Project-URL"] == "Paper, https://arxiv.org/abs/2507.03041"
    assert about["Description-Content-Type"] == "text/markdown"
    assert about.get_payload().strip() == (ROOT / "README.md").read_text(encoding="utf-8").strip()


def test_the_commands_run_where_there_is_no_checkout(installed, tmp_path):
    help_text = call([installed / "optimas", "--help"], tmp_path)
    commands = {line.split()[0] for line in help_text.splitlines() if line.startswith("  ")}
    assert commands == {path.stem for path in (ROOT / "launch").glob("*.py")}
    call([installed / "optimas", "run", "hotpotqa:smoke", "--workdir=smoke", "--config.seed=1"], tmp_path)
    results = json.loads((tmp_path / "smoke" / "results.json").read_text())
    assert results["n"] == 16 and (tmp_path / "smoke" / "best" / "configuration.json").is_file()
    (tmp_path / "rows.csv").write_text("question\nWhat is the capital of Peru?\n")
    call([installed / "optimas", "predict", "--run=smoke", "--input=rows.csv", "--output=out.jsonl"], tmp_path)
    assert json.loads((tmp_path / "out.jsonl").read_text())["outcome"] == "ok"
    assert "**Passes**" in call([installed / "optimas", "check", "smoke/best", "--against=smoke/best"], tmp_path)
    files = call([installed / "python", "-c", "import optimas_jax; print(optimas_jax.__file__)"], tmp_path)
    assert files.startswith(str(installed.parent))


def test_a_configuration_in_the_package_is_a_benchmark_by_its_portable_name(installed, tmp_path):
    call([installed / "optimas", "run", "own_system", "--workdir=own", "--stage=collect", *TINY], tmp_path)
    config = json.loads((tmp_path / "own" / "config.json").read_text())
    assert config["benchmark"] == "optimas_jax/configs/own_system.py"


TINY = ["--config.system.language_model.model=random:0", "--config.reward.model=random:0", "--config.offline.groups=1"]


def test_the_points_of_a_sweep_run(installed, tmp_path):
    call([installed / "pip", "install", "--quiet", "optimas_jax[compare]"], tmp_path)
    little = [
        f"--config.data.{split}={size}" for split, size in (("train", 6), ("val", 6), ("test", 6), ("confirm", 6))
    ]
    sweep = ["--sweep=optimize.gate.kind=none seed=0:2", "--config.optimize.iterations=1", "--config.offline.groups=1"]
    call([installed / "optimas", "sweep", "hotpotqa:smoke", "--workdir=swept", *sweep, *little], tmp_path)
    assert "| 2/2 |" in (tmp_path / "swept" / "sweep.md").read_text()


def test_the_readmes_own_program_runs(installed, tmp_path):
    program = (ROOT / "examples" / "own_program.py").read_text()
    (tmp_path / "own_program.py").write_text(program)
    printed = call([installed / "python", "own_program.py"], tmp_path)
    assert "Result(metric " in printed
    print([line for line in printed.splitlines() if "Result(" in line])
