"""Attacks on the sandbox have no effect outside, in every kind of walls, as root and as an ordinary user."""

import json
import os
import subprocess
import sys
from pathlib import Path

import attacks
import pytest

from optimas_jax.sandbox import program as sandbox

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
KEY = "sk-planted-0123456789"
WALLS = {
    "namespaces": sandbox.wall_kind() == "jail",
    "bubblewrap": sandbox._has_bubblewrap(),
    "limits": not sandbox.lacking(),
}
USERS = {"root": 0, "ordinary": 4242}
# What is run every time: those that end at once, of every group.
QUICK = [name for group in ("network", "processes", "files", "privileges") for name in [*attacks.GROUPS[group]][::4]]
QUICK += ["a daemon that hops", "files in memory"]


def python_of(user):
    """An interpreter that the user can start; ours if possible."""
    if os.geteuid() != 0:
        return sys.executable if user else pytest.skip("only root can be root")
    here = ["/usr/bin/env", "-i", sys.executable, "-c", "import sys; assert sys.version_info >= (3, 11)"]
    for interpreter in (sys.executable, "/usr/bin/python3"):
        here[2] = interpreter
        with_rights = {"user": user, "group": user, "extra_groups": []} if user else {}
        if subprocess.run(here, capture_output=True, cwd="/", check=False, **with_rights).returncode == 0:
            return interpreter
    return pytest.skip("an ordinary user has no interpreter here")


def outcomes(walls, user, names):
    if not WALLS[walls]:
        pytest.skip(f"no {walls} here")
    if user and os.geteuid() != 0:
        user = os.geteuid()
    command = [python_of(user), HERE / "attacked.py", json.dumps({"walls": walls, "names": names})]
    environment = {"KEY": KEY, "PYTHONPATH": f"{ROOT}:{HERE}", "PYTHONDONTWRITEBYTECODE": "1", "PATH": "/usr/bin:/bin"}
    rights = {"user": user, "group": user, "extra_groups": []} if user and os.geteuid() == 0 else {}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, cwd="/", check=False, **rights)
    assert ran.stdout, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


def problems(results):
    return {name: found for name, found in results.items() if found["problems"]}


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("walls", WALLS)
def test_quick_attacks_have_no_effect_outside(walls, user):
    assert problems(outcomes(walls, USERS[user], QUICK)) == {}


@pytest.mark.long
@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("walls", WALLS)
def test_attacks_have_no_effect_outside(walls, user):
    assert len(attacks.ATTACKS) >= 60
    assert problems(outcomes(walls, USERS[user], [*attacks.ATTACKS])) == {}


def test_attacks_work_where_there_are_no_walls(tmp_path):
    names = ["a file that only this user reads", "the mode of a file", "the environment"]
    sources = "\n".join(attacks.ATTACKS[name] for name in names)
    secret = tmp_path / "secret"
    secret.write_text("x")
    secret.chmod(0o600)
    sources = sources.replace("@SECRET@", str(secret)).replace("@KEY@", KEY)
    ran = subprocess.run([sys.executable, "-c", sources], env={"KEY": KEY}, capture_output=True, text=True, check=True)
    assert ran.stdout.count("BREACH") == 2
    assert secret.stat().st_mode & 0o777 == 0o666
