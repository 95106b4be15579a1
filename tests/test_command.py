"""The command ``optimas``, what comes with the package, and what importing it costs."""

import subprocess
import sys
from pathlib import Path

import pytest
from runs import ROOT

from optimas_jax import command
from optimas_jax.core import shipped

HOTPOTQA = str(ROOT / "configs" / "hotpotqa.py")


def optimas(*arguments, folder):
    """The command in another folder than the checkout's."""
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}
    done = subprocess.run(
        [sys.executable, "-m", "optimas_jax", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_help_lists_every_command_without_running_one(tmp_path):
    code, output = optimas(folder=tmp_path)
    assert code == 0
    for file in (ROOT / "launch").glob("*.py"):
        assert f"\n  {file.stem} " in output
    assert "Runs an experiment, or one stage of it" in output
    assert "own_system" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("runn",), "unknown command 'runn'; did you mean 'run'? known: bench, "),
        (("run", "hotpot:smoke"), "unknown configuration 'hotpot'; did you mean 'hotpotqa'? known: amazon, "),
        (("run", "nope.py"), "there is no file 'nope.py'; configurations are amazon, "),
        (
            ("run", "hotpotqa:smok"),
            "unknown variant 'smok' of configs/hotpotqa.py; did you mean 'smoke'? known: embedded, ",
        ),
    ],
)
def test_the_exit_code_and_the_words_are_those_of_the_command(arguments, message, tmp_path):
    code, output = optimas(*arguments, folder=tmp_path)
    assert code == 1 and message in output and "Traceback" not in output, output


def test_help_of_a_command_is_no_error(tmp_path):
    code, output = optimas("run", "--help", folder=tmp_path)
    assert code == 0 and "python launch/run.py --config=configs/hotpotqa.py" in output


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["hotpotqa:smoke", "--workdir=x"], [f"--config={HOTPOTQA}:smoke", "--workdir=x"]),
        (["--config=hotpotqa", "--config.seed=1"], [f"--config={HOTPOTQA}", "--config.seed=1"]),
        (["--stage=align", "--config", "hotpotqa:tiny"], ["--stage=align", f"--config={HOTPOTQA}:tiny"]),
        (["configs/hotpotqa.py:smoke"], [f"--config={HOTPOTQA}:smoke"]),
        (["mine.py"], ["--config=mine.py"]),
        ([], [f"--config={HOTPOTQA}"]),
    ],
)
def test_a_configuration_is_a_name_or_a_file(given, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").touch()
    assert command.with_configuration(given) == expected


def test_a_file_of_the_users_goes_before_the_packages(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shipped.find("configs/sweeps/rank.py") == ROOT / "configs" / "sweeps" / "rank.py"
    Path("configs/sweeps").mkdir(parents=True)
    Path("configs/sweeps/rank.py").touch()
    assert shipped.find("configs/sweeps/rank.py") == Path("configs/sweeps/rank.py")
    assert shipped.find("elsewhere/rank.py") == Path("elsewhere/rank.py")


def test_a_run_folder_names_an_installed_file_wherever_the_package_lies(tmp_path, monkeypatch):
    file = str(ROOT / "configs" / "own_system.py")
    assert shipped.portable(file) == file  # of a checkout: as it was given
    package = tmp_path / "site-packages" / "optimas_jax"
    monkeypatch.setattr(shipped, "PACKAGE", package)
    monkeypatch.setattr(shipped, "INSTALLED", True)
    installed = package / "configs" / "own_system.py"
    name = shipped.portable(str(installed))
    assert name == "optimas_jax/configs/own_system.py" and shipped.find(name) == installed
    assert shipped.portable("mine.py") == "mine.py"
    assert shipped.python_path("") == [] and shipped.python_path("/a") == ["/a"]


def test_importing_the_package_loads_no_arrays_and_no_clients():
    code = """
import sys, time
start = time.perf_counter()
import optimas_jax as oj
imported = time.perf_counter()
oj.prompt("Answer the question."), oj.setting(1, choices=(1, 2)), oj.component(lambda text: text, name="tool")
declared = time.perf_counter()
oj.optimize
heavy = {"jax", "flax", "optax", "orbax", "transformers", "datasets", "openai", "anthropic", "tensorboard", "IPython"}
print(sorted(heavy & {*sys.modules}))
print(f"{imported - start:.3f} {declared - imported:.3f} {time.perf_counter() - declared:.3f}")
"""
    run = [sys.executable, "-c", code]
    loaded, seconds = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert loaded == "[]"
    print(f"seconds to import, to declare, to reach optimize: {seconds}")
