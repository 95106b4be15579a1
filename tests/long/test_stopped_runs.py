"""Runs that are killed or stopped at random moments: the same command ends as the straight run, and what is paid twice
is known.

    OPTIMAS_JAX_STOPS=2 python -m pytest -m long tests/long/test_stopped_runs.py     fewer moments of each kind
"""

import json
import os
import random
import signal
import sqlite3
import subprocess
import time

import pytest
from api_servers import ApiServers
from served import serving_app
from smoke_command import TOGETHER, finish, of_server, outcome, start

pytestmark = pytest.mark.long

MOST = int(os.environ.get("OPTIMAS_JAX_STOPS", "1000"))
WEIGHTS = ("--config.system.weights=answer_generator", "--config.policy.updates=2")


def attempts(folder):
    """Attempts on the tape that have no answer."""
    with sqlite3.connect(folder / "tape.sqlite") as db:
        return db.execute("SELECT COUNT(*) FROM attempts").fetchone()[0]


def stop(process, number, seconds):
    """Sends a signal after some seconds, if the process runs as long; returns (exit code, output)."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(number)
    return finish(process)


@pytest.fixture(scope="module")
def servers():
    """(servers, address); answers take a tenth of a second."""
    servers = ApiServers()
    with serving_app(servers.app, log_level="critical") as address:
        yield servers, address


def straight(folder, flags):
    """What a straight run leaves, and its seconds; the second one of two, whose programs are compiled."""
    finish(start(folder / "first", *flags))
    began = time.monotonic()
    code, output = finish(start(folder / "straight", *flags))
    assert code == 0, output
    return outcome(folder / "straight"), time.monotonic() - began


@pytest.mark.parametrize(
    ("kind", "number", "count"),
    [
        ("local", signal.SIGKILL, 15),
        ("local", signal.SIGTERM, 5),
        ("weights", signal.SIGKILL, 10),
        ("weights", signal.SIGTERM, 5),
    ],
)
def test_a_local_run_that_is_stopped_ends_as_the_straight_run(kind, number, count, tmp_path):
    flags = WEIGHTS if kind == "weights" else ()
    expected, seconds = straight(tmp_path, flags)
    rng = random.Random(f"{kind} {number}")
    for index in range(min(count, MOST)):
        folder = tmp_path / str(index)
        code, output = stop(start(folder, *flags), number, rng.uniform(0.2, 0.98) * seconds)
        assert code in (0, -9, 143, -15) and "Traceback" not in output, output
        code, output = finish(start(folder, *flags))
        assert code == 0, output
        assert outcome(folder) == expected


@pytest.mark.parametrize(("number", "count"), [(signal.SIGKILL, 15), (signal.SIGTERM, 10), (signal.SIGINT, 3)])
def test_a_run_on_a_server_that_is_stopped_pays_for_what_was_in_flight_at_most(number, count, tmp_path, servers):
    server, address = servers
    server.delay = 0.1
    flags = of_server(address)
    expected, seconds = straight(tmp_path, flags)
    needed = len(server.answered)
    rng = random.Random(f"server {number}")
    for index in range(min(count, MOST)):
        server.answered.clear()
        folder = tmp_path / str(index)
        code, output = stop(start(folder, *flags), number, rng.uniform(0.2, 0.98) * seconds)
        assert code in (0, -9, 130, 143, -15) and "Traceback" not in output, output
        time.sleep(0.3)  # answers that are on their way
        in_flight = attempts(folder) if (folder / "tape.sqlite").is_file() else 0
        code, output = finish(start(folder, *flags))
        assert code == 0, output
        assert outcome(folder) == expected
        twice = sum(server.answered.values()) - len(server.answered)
        assert len(server.answered) == needed and attempts(folder) == in_flight
        assert twice <= in_flight <= TOGETHER if number == signal.SIGKILL else twice == in_flight == 0


def stalled(server, workdir, *flags):
    """The process of a run whose last requests, are not answered."""
    server.delay, before = 0.05, len(server.bodies)
    process = start(workdir, *flags)
    while len(server.bodies) < before + 60:
        time.sleep(0.01)
    server.delay = 600.0
    seen = -1
    while seen < len(server.bodies):  # until all that it can send is sent
        seen = len(server.bodies)
        time.sleep(1.0)
    return process


def test_a_second_signal_ends_a_run_at_once_and_the_tape_is_whole(tmp_path, servers):
    server, address = servers
    process = stalled(server, tmp_path, *of_server(address))
    process.send_signal(signal.SIGTERM)
    time.sleep(1.0)
    assert process.poll() is None
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    code, output = finish(process)
    assert code == 143 and "in flight" in output and "the same command resumes" in output, output
    assert time.monotonic() - began < 3.0  # on a busy machine
    assert attempts(tmp_path) > 0
    server.delay = 0.0
    code, output = finish(start(tmp_path, *of_server(address)))
    assert code == 0, output


def test_the_grace_of_a_run_can_be_set(tmp_path, servers):
    server, address = servers
    process = stalled(server, tmp_path, *of_server(address), "--config.stop_grace=2")
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    code, output = finish(process)
    assert code == 143 and "left behind after 2 s" in output and time.monotonic() - began < 10.0, output
    assert json.loads((tmp_path / "unfinished.json").read_text())["uncertain"]["calls"] > 0
    assert (tmp_path / "best" / "configuration.json").is_file()
    server.delay = 0.0
