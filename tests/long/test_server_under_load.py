"""The server in a process of its own: thousands of random requests; clients that leave, stall, or send megabytes."""

import asyncio
import contextlib
import json
import random
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import fuzz_requests
import httpx2
import pytest

PROGRAM = Path(__file__).parent.parent / "watched_server.py"
ANSWER = {"model": "m", "prompt": "The first", "max_tokens": 32, "temperature": 1.0, "seed": 3}
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def url():
    process = subprocess.Popen([sys.executable, str(PROGRAM)], stdout=subprocess.PIPE, text=True)
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 143
    finally:
        process.kill()
        process.communicate()


def watch(url):
    return httpx2.get(f"{url}/watch", timeout=60).json()


def test_5000_random_requests(url):
    fuzz_requests.fuzz(url, seed=1, count=800)  # what is compiled and loaded once
    before = watch(url)
    kinds = fuzz_requests.fuzz(url, seed=2, count=5000)
    after = watch(url)
    print(kinds, before, after)
    assert sum(kinds.values()) == 5000 and kinds["answer"] > 1000
    assert after["busy"] < 0.1
    assert after["memory"] - before["memory"] < 200


def percentile(values):
    return statistics.quantiles(values, n=20)[-1]


async def measured(url, count):
    """95th percentiles of the seconds of /health and of an answer of 32 tokens."""
    health, answers = [], []
    async with httpx2.AsyncClient(base_url=url, timeout=120) as client:
        for _ in range(count):
            for request, seconds in (
                (lambda: client.get("/health"), health),
                (lambda: client.post("/v1/completions", json=ANSWER), answers),
            ):
                begin = time.perf_counter()
                assert (await request()).status_code == 200
                seconds.append(time.perf_counter() - begin)
    return percentile(health), percentile(answers)


async def bad_client(url, number, seconds):
    """Leaves in the middle, stalls, or sends 5 MB; at a random time."""
    rng = random.Random(number)
    host, port = url.removeprefix("http://").split(":")
    await asyncio.sleep(rng.uniform(0, seconds))
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        reader, writer = await asyncio.open_connection(host, int(port))
        body = json.dumps({**ANSWER, "max_tokens": 4000, "stream": number % 2 == 0}).encode()
        body = b" " * 5_000_000 if number % 3 == 2 else body
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        if number % 3 == 0:  # leaves
            writer.write(head + body)
            await asyncio.sleep(rng.uniform(0, 0.2))
        elif number % 6 == 1:  # stalls while it sends
            writer.write(head + body[:-1])
            await asyncio.sleep(seconds)
        elif number % 3 == 1:  # does not read
            writer.write(head + body.replace(b"4000", b"64"))
            await asyncio.sleep(seconds)
        else:
            writer.write(head + body)
            await writer.drain()
            assert b" 413 " in await reader.readline()
        writer.close()


async def beside(url, seconds):
    others = [asyncio.create_task(bad_client(url, number, seconds)) for number in range(200)]
    values = await measured(url, 150)
    await asyncio.gather(*others)
    return values


def test_clients_that_leave_stall_or_send_megabytes(url):
    asyncio.run(measured(url, 30))
    asyncio.run(beside(url, 4))  # what is compiled once
    idle = asyncio.run(measured(url, 150))
    before = watch(url)
    busy = asyncio.run(beside(url, 10))
    time.sleep(2)
    after = watch(url)
    print("health and answer, idle", idle, "beside 200 clients", busy, before, after)
    assert busy[0] < 2 * idle[0] and busy[1] < 2 * idle[1]
    assert after["memory"] - before["memory"] < 300
    assert after["busy"] < 0.2  # a full garbage collection while it is idle
