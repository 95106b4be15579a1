import asyncio
import dataclasses
import queue
import threading
import time
from types import SimpleNamespace

import pytest
import tiny
from fakes import request

from optimas_jax.core.types import Outcome, StopRun
from optimas_jax.engine.sampler import ContextOverflow, Sample
from optimas_jax.llm import local
from optimas_jax.llm.base import Message, count_prompt
from optimas_jax.llm.local import EngineError, LocalCompleter
from optimas_jax.llm.providers import RoutedCompleter
from optimas_jax.llm.sandbox import SandboxCompleter


class FakeSampler:
    """Echoes prompts, ``rows`` at a time; waits before its first step until ``open`` is set, so that requests gather
    behind it. ``batches`` records what was admitted together."""

    def __init__(self, rows=32, held=False):
        self.rows, self.checked, self.batches = rows, 0, []
        self.started, self.open = threading.Event(), threading.Event()
        if not held:
            self.open.set()
        self.failure = self.closed = self.unreadable = self.broken = None
        self.tokenizer = SimpleNamespace(
            encode=lambda text: list(text.encode()),
            encode_chat=lambda turns: list("|".join(f"{t['role']}:{t['content']}" for t in turns).encode()),
        )

    def check(self, one):
        if len(one.prompt_ids) > 100:
            raise ContextOverflow(f"prompt of {len(one.prompt_ids)} tokens: shorten the prompt")
        self.checked += 1

    def row_request(self, one):
        return one

    def rest(self):
        pass

    def sample(self, one, tokens, logprobs):
        if self.unreadable:
            raise self.unreadable
        return Sample(tokens, logprobs, bytes(tokens).decode(), "stop" if one.max_tokens > 4 else "length")

    def text_so_far(self, one, tokens):
        return bytes(tokens).decode()

    def batch(self):
        if self.broken:
            raise self.broken
        return FakeBatch(self)


class FakeBatch:
    """Finishes one request a step, the one with the shortest prompt first."""

    def __init__(self, sampler):
        self.sampler, self.flying = sampler, []

    @property
    def active(self):
        return [key for key, _ in self.flying]

    def admit(self, waiting):
        if waiting and self.sampler.closed:
            raise self.sampler.closed
        admitted = waiting[: self.sampler.rows - len(self.flying)]
        self.flying += admitted
        if admitted:
            self.sampler.batches.append([bytes(one.prompt_ids).decode() for _, one in admitted])
        return [key for key, _ in admitted]

    def partial(self):
        return [(key, one.prompt_ids) for key, one in self.flying]

    def step(self, most=None):
        self.sampler.started.set()
        assert self.sampler.open.wait(timeout=10)
        if self.sampler.failure:
            raise self.sampler.failure
        if not self.flying:
            return []
        done = min(self.flying, key=lambda flight: len(flight[1].prompt_ids))
        self.flying.remove(done)
        key, one = done
        return [(key, one.prompt_ids, (0.0,) * len(one.prompt_ids))]

    def clear(self):
        self.flying.clear()


def plain(text, **settings):
    return request(messages=(Message("text", text),), **settings)


def ask_all(completer, *requests):
    async def all_at_once():
        async with asyncio.timeout(10):
            return await asyncio.gather(*map(completer.complete, requests), return_exceptions=True)

    return asyncio.run(all_at_once())


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


def ask_behind(sampler, *requests, cancel=()):
    """Answers to requests that gather while the engine is busy with another one; ``cancel`` are given up meanwhile."""
    completer = LocalCompleter("m", lambda: sampler)

    async def run():
        first = asyncio.create_task(completer.complete(plain("first")))
        await until(sampler.started.is_set)
        tasks = []
        for number, one in enumerate(requests, start=2):  # one after another: what is waiting has an order
            tasks.append(asyncio.create_task(completer.complete(one)))
            await until(lambda number=number: sampler.checked == number)
        for index in cancel:
            tasks[index].cancel()
        for _ in range(5):  # a cancelled task tells the engine in one of the next rounds of the loop
            await asyncio.sleep(0)
        sampler.open.set()
        async with asyncio.timeout(10):
            return await asyncio.gather(first, *tasks, return_exceptions=True)

    return asyncio.run(run())


def test_an_answer_comes_with_what_it_took():
    [answer] = ask_all(LocalCompleter("m", FakeSampler), plain("abc"))
    assert (answer.text, answer.outcome) == ("abc", Outcome.OK)
    assert (answer.prompt_tokens, answer.completion_tokens, answer.usd) == (3, 3, 0.0)
    assert answer.seconds > 0
    [cut] = ask_all(LocalCompleter("m", FakeSampler), plain("abc", max_tokens=4))
    assert cut.outcome is Outcome.TRUNCATED


def test_chats_go_through_the_template_and_plain_texts_do_not():
    sampler = FakeSampler()
    chat = request(messages=(Message("system", "a"), Message("user", "b")))
    assert [answer.text for answer in ask_all(LocalCompleter("m", lambda: sampler), chat)] == ["system:a|user:b"]
    assert [answer.text for answer in ask_all(LocalCompleter("m", lambda: sampler), plain("a"))] == ["a"]


def test_settings_reach_the_engine():
    seen = []
    sampler = FakeSampler()
    sampler.check = seen.append
    ask_all(
        LocalCompleter("m", lambda: sampler),
        plain("a", max_tokens=5, temperature=0.5, top_p=0.9, seed=7, stop=("\n",)),
    )
    [one] = seen
    assert (one.max_tokens, one.temperature, one.top_p, one.seed, one.stop) == (5, 0.5, 0.9, 7, ("\n",))


def test_requests_that_wait_join_together():
    sampler = FakeSampler(held=True)
    answers = ask_behind(sampler, *[plain(text) for text in "abcde"])
    assert sampler.batches == [["first"], list("abcde")]
    assert [answer.text for answer in answers] == ["first", *"abcde"]


def test_waiting_requests_take_the_rows_of_those_that_are_done():
    sampler = FakeSampler(rows=2, held=True)
    answers = ask_behind(sampler, *[plain(text) for text in ("a", "bb", "c", "d")])
    assert [answer.text for answer in answers] == ["first", "a", "bb", "c", "d"]
    # "first" is done before anything can join; then whoever is done makes room for the oldest that waits.
    assert sampler.batches == [["first"], ["a", "bb"], ["c"], ["d"]]


def test_requests_given_up_while_waiting_are_not_answered():
    sampler = FakeSampler(held=True)
    answers = ask_behind(sampler, *[plain(text) for text in "abc"], cancel=(0, 2))
    assert [isinstance(answer, asyncio.CancelledError) for answer in answers] == [False, True, False, True]
    assert sampler.batches == [["first"], ["b"]]


def test_a_request_given_up_while_it_is_answered_hurts_nobody():
    sampler = FakeSampler(held=True)
    completer = LocalCompleter("m", lambda: sampler)

    async def run():
        first = asyncio.create_task(completer.complete(plain("first")))
        await until(sampler.started.is_set)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        sampler.open.set()
        async with asyncio.timeout(10):
            return await completer.complete(plain("second"))

    assert asyncio.run(run()).text == "second"


def test_the_model_is_loaded_once_and_not_before_it_is_needed():
    loads = []

    def load():
        loads.append(threading.current_thread())
        time.sleep(0.02)
        return FakeSampler()

    completer = LocalCompleter("m", load)
    ask_all(completer, request(model="n"))
    assert loads == []
    assert len(ask_all(completer, *[plain(text) for text in "abcdefgh"])) == 8
    ask_all(completer, plain("i"))
    assert len(loads) == 1
    assert loads[0] is not threading.main_thread()  # the event loop goes on while the model loads


def test_another_model_is_refused():
    [error] = ask_all(LocalCompleter("m", FakeSampler), request(model="n"))
    assert isinstance(error, EngineError)
    assert str(error) == "this engine serves 'm', not 'n'"


def test_a_prompt_that_does_not_fit_is_refused_alone():
    completer = LocalCompleter("m", FakeSampler)
    long, short = ask_all(completer, plain("x" * 101), plain("short"))
    assert isinstance(long, EngineError)
    assert str(long) == "prompt of 101 tokens: shorten the prompt"
    assert short.text == "short"
    assert issubclass(EngineError, StopRun)


def test_a_failure_of_the_engine_reaches_the_whole_batch_and_no_other():
    sampler = FakeSampler(held=True)
    sampler.failure = MemoryError("no room")
    answers = ask_behind(sampler, plain("a"), plain("b"))
    for answer in answers:
        assert isinstance(answer, EngineError)
        assert str(answer) == "the local engine failed (MemoryError: no room)"
        assert answer.__cause__ is sampler.failure
    assert len({id(answer) for answer in answers}) == 3  # one each, because callers add notes to it
    sampler.failure = None
    assert ask_all(LocalCompleter("m", lambda: sampler), plain("c"))[0].text == "c"


@pytest.mark.parametrize("where", ["closed", "unreadable"])
def test_a_failure_before_or_after_decoding_reaches_those_it_concerns(where):
    """Nobody can be let in; an answer cannot be read. Neither leaves anyone waiting."""
    sampler = FakeSampler()
    completer = LocalCompleter("m", lambda: sampler)
    setattr(sampler, where, MemoryError("no room"))
    [answer] = ask_all(completer, plain("a"))
    assert isinstance(answer, EngineError)
    assert answer.__cause__ is getattr(sampler, where)
    setattr(sampler, where, None)
    assert ask_all(completer, plain("b"))[0].text == "b"


def test_the_engine_goes_on_after_a_failure():
    sampler = FakeSampler()
    completer = LocalCompleter("m", lambda: sampler)
    sampler.failure = RuntimeError("once")
    assert isinstance(ask_all(completer, plain("a"))[0], EngineError)
    sampler.failure = None
    assert ask_all(completer, plain("b"))[0].text == "b"


def test_closing_waits_for_the_batch_in_work_and_answers_nothing_more():
    sampler = FakeSampler(held=True)
    completer = LocalCompleter("m", lambda: sampler)

    async def run():
        first = asyncio.create_task(completer.complete(plain("first")))
        await until(sampler.started.is_set)
        late = asyncio.create_task(completer.complete(plain("late")))
        closing = asyncio.create_task(asyncio.to_thread(completer.close))
        await until(lambda: completer._queue.qsize() >= 2)  # the late request, and the end
        assert not closing.done()
        sampler.open.set()
        await closing
        assert (await first).text == "first"
        with pytest.raises(EngineError, match="it was closed"):
            await late

    asyncio.run(run())
    assert sampler.batches[0] == ["first"]
    completer.close()  # again, with nothing to end


@pytest.mark.parametrize("step", ["batch", "rest", "active", "clear"])
def test_an_error_anywhere_in_the_engine_thread_reaches_all_that_wait(step, monkeypatch):
    """Not in decoding alone: while a batch is made, while the thread rests, and while it looks after a failure."""
    sampler, fault, broken = FakeSampler(held=True), MemoryError("no room"), threading.Event()

    def fail(*arguments):
        if broken.is_set():
            raise fault

    completer = LocalCompleter("m", lambda: sampler)
    if step == "batch":
        sampler.broken = fault
    elif step == "rest":
        broken.set()
        sampler.rest = fail
    elif step == "active":
        monkeypatch.setattr(FakeBatch, "active", property(lambda self: fail() or [key for key, _ in self.flying]))
    else:
        sampler.failure = RuntimeError("first")
        monkeypatch.setattr(FakeBatch, "clear", fail)

    async def run():
        tasks = [asyncio.create_task(completer.complete(plain(text))) for text in "abc"]
        if step in ("active", "clear"):
            await until(lambda: sampler.started.is_set() and sampler.checked == 3)
            broken.set()
        sampler.open.set()
        async with asyncio.timeout(10):
            return await asyncio.gather(*tasks, return_exceptions=True)

    answers = asyncio.run(run())
    failed = [answer for answer in answers if isinstance(answer, EngineError)]
    assert failed and all(answer.__cause__ in (fault, sampler.failure) for answer in failed)
    assert step == "active" or len(failed) == 3
    # A thread that died is noticed: the next request gets a new one.
    monkeypatch.undo()
    sampler.broken = sampler.failure = None
    sampler.rest = lambda: None
    assert ask_all(completer, plain("d"))[0].text == "d"


@pytest.mark.parametrize("reading", range(4))
def test_a_wait_ends_whenever_the_clock_jumps(reading, monkeypatch):
    """A thread may lose its core for longer than it means to wait, between any two readings of the clock."""
    readings = []

    def clock():
        readings.append(None)
        return time.monotonic() + (1.0 if len(readings) > reading else 0.0)

    completer, ended = LocalCompleter("m", FakeSampler), threading.Event()
    monkeypatch.setattr(queue, "time", clock)

    def gather():
        completer._gather([], idle=False)
        ended.set()

    threading.Thread(target=gather, daemon=True).start()
    assert ended.wait(timeout=10)
    assert readings  # the clock that was replaced is the one that the wait reads


@pytest.mark.parametrize("idle", [False, True])
def test_a_steady_trickle_of_requests_does_not_hold_up_decoding(idle, monkeypatch):
    """Each arrives before the wait for it ends; the clock is the test's own."""
    now, completer, pending = [0.0], LocalCompleter("m", FakeSampler), []

    def get(timeout):
        if timeout is not None and timeout < 0.009:
            raise queue.Empty
        now[0] += 60.0 if timeout is None else 0.009
        assert len(pending) < 1000
        return object()

    monkeypatch.setattr(local, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(completer, "_queue", SimpleNamespace(get=get))
    assert completer._gather(pending, idle=idle)
    assert 5 < len(pending) < 20


def test_an_error_of_a_listener_ends_its_request_and_no_other():
    sampler = FakeSampler(held=True)
    completer = LocalCompleter("m", lambda: sampler)

    def gone(text):
        raise RuntimeError("Event loop is closed")

    async def run():
        first = asyncio.create_task(completer.complete(plain("first")))
        await until(sampler.started.is_set)
        tasks = [
            asyncio.create_task(completer.complete(plain(text), listener))
            for text, listener in (("b", None), ("long", gone))
        ]
        await until(lambda: sampler.checked == 3)
        sampler.open.set()
        async with asyncio.timeout(10):
            return await asyncio.gather(first, *tasks, return_exceptions=True)

    first, quick, slow = asyncio.run(run())
    assert (first.text, quick.text) == ("first", "b")
    assert isinstance(slow, EngineError) and "Event loop is closed" in str(slow)


def test_a_stream_is_the_answer_and_holds_back_what_may_begin_a_stop_text():
    completer = LocalCompleter("m", tiny.sampler)
    settings = {"max_tokens": 40, "temperature": 1.5}
    streamed = 0
    for seed in range(6):
        [free] = ask_all(completer, plain("The", seed=seed, **settings))
        stop = free.text[len(free.text) // 2 :][:3]
        if len(stop) < 3 or "\ufffd" in stop:
            continue
        parts: list[str] = []
        request_of = plain("The", seed=seed, stop=(stop,), **settings)
        answer = asyncio.run(completer.complete(request_of, parts.append))
        assert answer.text == free.text[: free.text.find(stop)]
        assert all(answer.text.startswith(part.lstrip()) for part in parts)
        assert answer.completion_tokens < free.completion_tokens
        streamed += bool(parts)
    assert streamed > 2


def test_the_length_of_a_prompt_is_known_once_the_model_is_loaded():
    loads = []
    completer = LocalCompleter("m", lambda: loads.append(1) or FakeSampler())
    routed = RoutedCompleter({}, lambda spec: completer)
    hello = request("hi")
    assert completer.prompt_tokens(hello) is None is routed.prompt_tokens(hello) and not loads
    completion = asyncio.run(routed.complete(hello))
    assert completion.prompt_tokens == count_prompt(routed, hello) == completer.prompt_tokens(hello)
    assert SandboxCompleter(routed).prompt_tokens(hello) == completion.prompt_tokens <= hello.most().prompt_tokens
    completer.close()


def test_the_length_of_a_prompt_needs_the_tokenizer_alone():
    """So that a budget is priced, and kept, by true lengths before the model is loaded."""
    routed = RoutedCompleter({}, lambda spec: LocalCompleter(spec, lambda: pytest.fail("the model was loaded")))
    hello = dataclasses.replace(request("Hello, how are you?"), model="random:0")
    tokens = routed.prompt_tokens(hello)
    assert tokens is not None and 0 < tokens < hello.most().prompt_tokens
    assert routed.prompt_tokens(dataclasses.replace(hello, model="no/such/folder")) is None
    assert routed.prompt_tokens(dataclasses.replace(hello, model="openai:gpt-4o-mini")) is None
