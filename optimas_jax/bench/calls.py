"""The work of the suite ``hostloop``: calls with latencies that every side and the server know, and the server.

The prompt of a call contains its number. The server (``python -m optimas_jax.bench.calls``) reads
``{"latencies": [...]}`` in seconds from each line of its standard input, and answers call i after the i-th latency,
until the next line.
"""

from __future__ import annotations

import asyncio
import heapq
import json
import random
import re
import sys
from collections.abc import Sequence

INPUTS = 100  # inputs of a round; every value is tried on each
_NUMBER = re.compile(rb"variant (\d+)\D.*question (\d+)", re.DOTALL)
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_SIGMA = 0.8  # standard deviation of a latency's logarithm; the longest of 2,000 is then about ten times the mean
_WORDS = " ".join(["Weigh what you know, then say it in one word."] * 40)  # a prompt of usual length
ANSWER = {
    "id": "1",
    "object": "chat.completion",
    "created": 0,
    "model": "stub",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "an answer"}}],
    "usage": {"prompt_tokens": 500, "completion_tokens": 20, "total_tokens": 520},
}
_BODY = json.dumps(ANSWER).encode()
_RESPONSE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(_BODY), _BODY)


def instruction(variant: int) -> str:
    """The instruction of a value."""
    return f"This is variant {variant}. {_WORDS}"


def question(number: int) -> str:
    """The text of an input."""
    return f"question {number}"


def call_number(text: bytes) -> int:
    """The number of the call that a prompt, or a request's body, belongs to."""
    match = _NUMBER.search(text)
    assert match is not None, text
    return int(match[1]) * INPUTS + int(match[2])


def draw_latencies(kind: str, count: int, mean: float, seed: int = 0) -> list[float]:
    """Latencies of calls, in seconds: all equal (``constant``), or log-normal with the same mean."""
    if kind == "constant":
        return [mean] * count
    rng = random.Random(seed)
    drawn = [rng.lognormvariate(0.0, _SIGMA) for _ in range(count)]
    return [latency * mean * count / sum(drawn) for latency in drawn]


def ideal_seconds(latencies: Sequence[float], concurrency: int) -> float:
    """Seconds that the calls take if each starts as soon as one of ``concurrency`` places is free."""
    free = [0.0] * concurrency
    for latency in latencies:
        heapq.heappush(free, heapq.heappop(free) + latency)
    return max(free)


class _Connection(asyncio.Protocol):
    """One connection of a client, whose requests are answered in turn."""

    def __init__(self, latencies: Sequence[float]):
        self._latencies, self._received = latencies, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not end or length is None or len(body) < int(length[1]):
            return
        self._received = b""
        latency = self._latencies[call_number(body)]
        asyncio.get_running_loop().call_later(latency, self._answer)

    def _answer(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(_RESPONSE)


async def _serve() -> None:
    loop, latencies = asyncio.get_running_loop(), list[float]()
    server = await loop.create_server(lambda: _Connection(latencies), "127.0.0.1", 0, backlog=4096)
    port = server.sockets[0].getsockname()[1]
    while line := await asyncio.to_thread(sys.stdin.readline):
        latencies[:] = json.loads(line)["latencies"]
        print(json.dumps({"url": f"http://127.0.0.1:{port}/v1"}), flush=True)


if __name__ == "__main__":
    asyncio.run(_serve())
