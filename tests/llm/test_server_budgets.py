"""Random budgets against servers that are right, faulty, slow or silent: what the server counts stays within them."""

import asyncio
import collections
import json
import random
import threading

import httpx2
import pytest

from optimas_jax.core.types import StopRun
from optimas_jax.llm.accounts.ledger import Budget, Ledger
from optimas_jax.llm.accounts.prices import parse_prices
from optimas_jax.llm.attempts import Retries
from optimas_jax.llm.base import CompletionRequest, Message
from optimas_jax.llm.clients.openai import OpenAICompleter
from optimas_jax.llm.clients.remote import ServerConfig
from optimas_jax.llm.tapes.tape import Tape
from optimas_jax.llm.tapes.taped import TapedCompleter

PRICES = parse_prices("openai:stub=50/200")
REQUESTS, TOGETHER = 150, 32


class Books:
    """A server that bills an answer when the model's work is done, whether or not the client gets it."""

    def __init__(self, kind, seed):
        self.kind, self.billed = kind, collections.Counter()
        self._rng, self._lock = random.Random(seed), threading.Lock()

    def handle(self, asked):
        body = json.loads(asked.content)
        with self._lock:
            draw, words = self._rng.random(), self._rng.randint(1, _limit(body))
        if self.kind == "faulty" and draw < 0.1:
            return httpx2.Response(429, headers={"retry-after": "0.01"}, json={"error": {"message": "slow down"}})
        if self.kind == "faulty" and draw < 0.2:
            return httpx2.Response(500, json={"error": {"message": "oops"}})
        if self.kind == "ignores the limit":
            words = _limit(body) * 4
        read = len(body["messages"][0]["content"].split())
        with self._lock:
            self.billed.update(calls=1, tokens=read + words)
            self.billed["usd"] += read * 50e-6 + words * 200e-6
        if self.kind in ("faulty", "slow") and draw < 0.3:  # the work is done, and the answer never comes
            raise httpx2.ReadTimeout("too slow") if self.kind == "slow" else httpx2.RemoteProtocolError("cut off")
        choice = {"finish_reason": "stop", "message": {"role": "assistant", "content": "word " * words}}
        usage = {"prompt_tokens": read, "completion_tokens": words}
        told = {"silent": None, "usage null": {"usage": None}}.get(self.kind, {"usage": usage})
        return httpx2.Response(200, json={"choices": [choice], **(told or {})})


def _limit(body):
    return body.get("max_tokens") or body["max_completion_tokens"]


def spend(kind, field, cap, seed, folder):
    """What a server of a kind bills for requests within a budget of one kind of cost."""
    books = Books(kind, seed)
    client = httpx2.Client(transport=httpx2.MockTransport(books.handle))
    server = ServerConfig("http://server/v1", retries=Retries(attempts=4, first_wait=0.001))
    completer = OpenAICompleter(server, prices=PRICES, http_client=client)
    texts = [" ".join(["w"] * random.Random(i).randint(1, 60)) + f" {i}" for i in range(REQUESTS)]
    requests = [CompletionRequest("openai:stub", (Message("user", text),), max_tokens=20) for text in texts]
    tape = Tape(folder / f"{seed}.sqlite")
    taped = TapedCompleter(tape, Ledger(Budget(**{field: cap}), tape.usage(), PRICES), completer)

    async def all_of_them():
        slots = asyncio.Semaphore(TOGETHER)

        async def one(request):
            async with slots:
                await taped.complete(request)

        async with asyncio.TaskGroup() as group:
            for request in requests:
                group.create_task(one(request))

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", "sk-planted-key")
        try:
            asyncio.run(all_of_them())
        except ExceptionGroup as errors:
            assert all(isinstance(error, StopRun) for error in errors.exceptions)
            ended = errors.exceptions[0]
        else:
            ended = None
    booked = getattr(tape.usage(), field)
    tape.close()
    return books.billed[field], booked, ended


CAPS = {"calls": (1, 150), "tokens": (200, 6000), "usd": (0.02, 0.6)}


def caps(count, kind):
    """Random budgets of all kinds of cost."""
    rng = random.Random(kind)
    for number in range(count):
        field = rng.choice(list(CAPS))
        low, high = CAPS[field]
        yield field, rng.uniform(low, high) if field == "usd" else rng.randint(low, high), number


@pytest.mark.parametrize("kind", ["right", "faulty", "slow", "silent", "usage null"])
@pytest.mark.parametrize("count", [6, pytest.param(60, marks=pytest.mark.long)])
def test_no_server_bills_more_than_a_budget_allows(kind, count, tmp_path):
    for field, cap, seed in caps(count, kind):
        billed, booked, _ = spend(kind, field, cap, seed, tmp_path)
        assert billed <= booked + 1e-9 and booked <= cap + 1e-9, (kind, field, cap)


@pytest.mark.parametrize("count", [3, pytest.param(40, marks=pytest.mark.long)])
def test_a_server_that_ignores_the_limit_of_an_answer_is_left_at_once(count, tmp_path):
    for field, cap, seed in caps(count, "ignores"):
        billed, _, ended = spend("ignores the limit", field, cap, seed, tmp_path)
        assert ended is not None and "\n" not in str(ended)
        one = {"calls": 1, "tokens": 61 + 80, "usd": 61 * 50e-6 + 80 * 200e-6}[field]
        assert billed <= cap + TOGETHER * one
