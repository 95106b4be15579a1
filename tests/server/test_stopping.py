"""SIGTERM and SIGINT: what is in flight is finished up to the grace, new requests get 503, a second signal ends."""

import concurrent.futures
import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest

PROGRAM = Path(__file__).parent.parent / "stopping_program.py"


@contextlib.contextmanager
def started(grace):
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), str(grace)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        url = f"http://127.0.0.1:{int(process.stdout.readline())}"
        while True:
            with contextlib.suppress(httpx2.TransportError):
                httpx2.get(f"{url}/health")
                break
        yield process, url
    finally:
        process.kill()
        process.communicate()


def asked(pool, url, seconds):
    """A request that is being answered."""
    answer = pool.submit(httpx2.get, url, params={"seconds": seconds}, timeout=60)
    time.sleep(0.5)
    return answer


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_what_is_in_flight_is_finished(number, code):
    with started(30) as (process, url), concurrent.futures.ThreadPoolExecutor() as pool:
        answer = asked(pool, url, 3)
        process.send_signal(number)
        time.sleep(0.5)
        refused = httpx2.get(url, params={"seconds": 0})
        assert refused.status_code == 503 and refused.json()["error"]["message"]
        assert httpx2.get(f"{url}/health").status_code == 503  # a load balancer sends nobody any more
        assert answer.result().text == "done"
        assert process.wait(10) == code
        assert "1 request in flight, up to 30 seconds" in process.stderr.read()


def test_the_grace_ends():
    with started(1) as (process, url), concurrent.futures.ThreadPoolExecutor() as pool:
        answer = asked(pool, url, 60)
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 143
        assert answer.result().status_code == 503


def test_a_second_signal_ends_at_once():
    with started(60) as (process, url), concurrent.futures.ThreadPoolExecutor() as pool:
        answer = asked(pool, url, 60)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        begin = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 143 and time.monotonic() - begin < 1.0
        with pytest.raises(httpx2.TransportError):
            answer.result()


def test_an_idle_server_ends_at_once():
    with started(60) as (process, _):
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 143
        assert process.stderr.read() == ""
