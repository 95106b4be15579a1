"""Places of calls: parallel and nested agents, repetitions by the framework, time-outs, threads."""

import asyncio
import contextlib
import json
import random
import threading
import urllib.error
import urllib.request

import openai
import pytest
from fakes import ScriptedCompleter
from tool_agents import adder, adds, begin, plain_tool_loop, record, run, run_all, system_of, tool_loop

import optimas_jax as oj
from optimas_jax.bridges import door
from optimas_jax.core.program import current_scope
from optimas_jax.core.running import event_loop
from optimas_jax.core.types import Example, Outcome, StopRun

QUESTIONS = [f"{'q' * (number % 5)}{number}" for number in range(16)]
ASYNC, SYNC = oj.client(), oj.client(sync=True)


async def parallel(question):
    """A planner, then workers side by side, each with tools; one asks another agent within a tool."""
    parts = await asyncio.gather(*(tool_loop(ASYNC, f"{question}{part}") for part in ("", "a", "a", "bb")))
    nested = await tool_loop(ASYNC, parts[-1], model="teller")
    return " ".join([*parts, nested])


def program(function, **settings):
    return oj.program(function, components=[adder(), oj.agent("teller", "Tell.")], **settings)


def uneven(seed):
    """A model whose answers take times of their own."""
    rng = random.Random(seed)

    class Uneven(ScriptedCompleter):
        async def complete(self, request):
            for _ in range(rng.randrange(8)):
                await asyncio.sleep(0)
            return await super().complete(request)

    return Uneven(adds)


def test_sixteen_runs_at_once_give_the_records_of_one_at_a_time():
    expected = [record(trace) for trace in run_all(program(parallel), QUESTIONS, 1)]
    for concurrency in (4, 16):
        assert [record(trace) for trace in run_all(program(parallel), QUESTIONS, concurrency)] == expected
    system, _ = system_of(program(parallel))
    example = Example("e0", {"question": QUESTIONS[0]}, {}, "train")
    for seed in range(4):
        latency = system.using(uneven(seed))
        trace = event_loop.run(latency.run(system.default_configuration(), example, 0))
        assert record(trace) == expected[0]
    repeats = [(call.inputs["messages"][1]["content"], call.repeat) for call in trace.calls[:8]]
    assert repeats.count((f"{QUESTIONS[0]}a", 0)) == repeats.count((f"{QUESTIONS[0]}a", 1)) > 0


def test_a_candidate_at_each_call_is_followed_as_if_all_were_run_again():
    system, _ = system_of(program(parallel))
    configuration, example = system.default_configuration(), Example("e", {"question": "q"}, {}, "train")
    trace = event_loop.run(system.run(configuration, example, 0))
    for index, call in enumerate(trace.calls):
        other = {"text": f"Other {index}.", "calls": []}
        followed = event_loop.run(system.run(configuration, example, 0, system.followed(trace, {index: other}, 0)))
        before = {one.key: one for one in trace.calls[:index]}
        scratch = {**before, call.key: followed.calls[index]}
        assert followed.calls[index].outputs == other
        assert record(followed) == record(event_loop.run(system.run(configuration, example, 0, scratch)))


def failing(times, then=adds):
    """A model that fails some times."""
    left = iter(range(times))
    return lambda request: "" if next(left, None) is not None else then(request)


async def patient(question):
    for _ in range(3):
        with contextlib.suppress(openai.APIStatusError):
            return await ask(question)
    return "gave up"


async def ask(question):
    answer = await ASYNC.chat.completions.create(model="adder", messages=begin(question))
    return answer.choices[0].message.content


def test_a_repetition_after_a_failure_is_the_same_call():
    trace, requests = run(program(patient), failing(2, lambda request: "Yes."))
    assert trace.outputs == {"output": "Yes."} and len(requests) == 3
    [call] = trace.calls
    assert (call.repeat, call.occurrence, call.outcome) == (0, 0, Outcome.OK)
    assert len({request.seed for request in requests}) == 1
    given = {call.key: call}
    again, requests = run(program(patient), failing(9), given=given)
    assert record(again) == record(trace) and not requests


def test_what_fails_each_time_is_one_failed_call():
    trace, requests = run(program(patient), failing(9))
    assert trace.outputs == {"output": "gave up"} and len(requests) == 3
    assert [call.outcome for call in trace.calls] == [Outcome.PARSE_ERROR]


def test_a_request_again_after_an_answer_is_another_call():
    async def twice(question):
        return [await ask(question), await ask(question)]

    trace, requests = run(program(twice), lambda request: "Yes.")
    assert [call.repeat for call in trace.calls] == [0, 1] and len(requests) == 2
    assert len({request.seed for request in requests}) == 2


def test_a_framework_that_does_not_wait_asks_for_the_same_call():
    """In this process: what it gave up keeps its place."""
    slow = asyncio.Event()

    class Slow(ScriptedCompleter):
        async def complete(self, request):
            if len(self.requests) == 0:
                self.requests.append(request)
                await slow.wait()
            return await super().complete(request)

    async def hurried(question):
        first = asyncio.ensure_future(ask(question))
        while not model.requests:
            await asyncio.sleep(0)
        first.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await first
        return await ask(question)

    system, _ = system_of(program(hurried))
    model = Slow(lambda request: "Yes.")
    example = Example("e", {"question": "q"}, {}, "train")
    trace = event_loop.run(system.using(model).run(system.default_configuration(), example, 0))
    assert [(call.repeat, call.outcome) for call in trace.calls] == [(0, Outcome.OK)]
    assert len({request.seed for request in model.requests}) == 1


def post(url, headers=()):
    body = json.dumps({"model": "adder", "messages": begin("q")}).encode()
    request = urllib.request.Request(
        f"{url}/chat/completions", body, {"content-type": "application/json", **dict(headers)}
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)["choices"][0]["message"]["content"]


def test_equal_requests_from_outside_share_the_one_that_is_in_flight():
    async def hurried(question):
        arrivals = current_scope().arrivals
        inputs = {"messages": ({"role": "user", "content": question},)}
        shared = await asyncio.gather(*(arrivals.call("adder", inputs) for _ in range(3)))
        again = await arrivals.call("adder", inputs, again=True)
        another = await arrivals.call("adder", inputs)
        return [call.outputs["text"] for call in (*shared, again, another)]

    trace, requests = run(program(hurried), lambda request: f"Yes {request.seed}.")
    first, *others = trace.outputs["output"]
    assert others[:3] == [first] * 3 and others[3] != first
    assert [call.repeat for call in trace.calls] == [0, 1] and len(requests) == 2


def test_the_sdk_says_that_it_asks_again():
    async def asks(question):
        url = oj.base_url()
        one = await asyncio.to_thread(post, url)
        return [one, await asyncio.to_thread(post, url, {"x-stainless-retry-count": "1"})]

    trace, requests = run(program(asks), lambda request: "Yes.")
    assert trace.outputs == {"output": ("Yes.", "Yes.")} and len(trace.calls) == len(requests) == 1


def test_a_client_that_left_gets_the_same_answer_when_it_asks_again():
    import socket

    async def leaves(question):
        url = oj.base_url()
        host, port = url.split("/")[2].split(":")
        body = json.dumps({"model": "adder", "messages": begin("q")}).encode()
        head = f"POST {url.split(port)[1]}/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        with socket.create_connection((host, int(port))) as left:
            left.sendall(head.encode() + body)
            while not model.requests:
                await asyncio.sleep(0.01)
        release.set()
        return await asyncio.to_thread(post, url)

    release = asyncio.Event()

    class Held(ScriptedCompleter):
        async def complete(self, request):
            self.requests.append(request)
            await release.wait()
            await asyncio.sleep(0.2)
            self.requests.pop()
            return await super().complete(request)

    system, _ = system_of(program(leaves))
    model = Held(lambda request: "Yes.")
    example = Example("e", {"question": "q"}, {}, "train")
    trace = event_loop.run(system.using(model).run(system.default_configuration(), example, 0))
    assert trace.outputs == {"output": "Yes."} and len(trace.calls) == 1 == len(model.requests)


def test_threads_of_a_pool_do_not_know_their_run_and_say_so_where_there_are_several():
    begun = threading.Barrier(2, timeout=20)

    def pooled(question):
        begun.wait()
        answers = []

        def work():
            try:
                answers.append(plain_tool_loop(SYNC, question))
            except openai.ConflictError as error:
                answers.append(error.body["message"])

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        begun.wait()
        return answers[0]

    traces = run_all(program(pooled), ["q", "qq"], 2)
    for trace in traces:
        assert "2 runs are in flight, and this request does not say which one it belongs to" in trace.outputs["output"]
        assert not trace.calls


def test_threads_that_have_the_address_of_their_run_belong_to_it():
    def pooled(question):
        client, answers = SYNC.with_options(base_url=oj.base_url()), []
        threads = [
            threading.Thread(target=lambda part=part: answers.append(plain_tool_loop(client, f"{question}{part}")))
            for part in ("a", "bb", "ccc")
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sorted(answers)

    traces = run_all(program(pooled), QUESTIONS, 16)
    for question, trace in zip(QUESTIONS, traces, strict=True):
        assert trace.outcome is Outcome.OK and len(trace.calls) == 6
        assert all(call.inputs["messages"][1]["content"].startswith(question) for call in trace.calls)


def test_runs_that_go_alone_do_so():
    active, most = [], []

    async def lonely(question):
        active.append(question)
        most.append(len(active))
        answer = await tool_loop(ASYNC, question)
        active.remove(question)
        return answer

    traces = run_all(program(lonely, alone=True), QUESTIONS[:6], 6, delay=0.01)
    assert max(most) == 1 and all(trace.outcome is Outcome.OK for trace in traces)


def test_a_program_that_holds_up_its_event_loop_is_told(monkeypatch):
    """A call that blocks and waits for an answer that only this loop can give."""
    monkeypatch.setattr(door, "_PATIENCE", 0.2)

    async def blocking(question):
        try:
            return post(oj.base_url())
        except urllib.error.HTTPError as error:
            with error:
                return json.load(error)["error"]["message"]

    trace, requests = run(program(blocking), adds)
    assert "the program holds it up by a call that blocks" in trace.outputs["output"] and not requests


def test_a_thread_with_an_event_loop_of_its_own_knows_its_run():
    def plain(question):
        return asyncio.run(tool_loop(ASYNC, question))

    trace, _ = run(program(plain))
    assert trace.outputs == {"output": "It is 2."} and len(trace.calls) == 2


def test_a_client_needs_the_sdk_that_it_is_made_for(monkeypatch):
    monkeypatch.setattr(openai, "__version__", "2.54.0")
    with pytest.raises(StopRun, match=r"needs openai 3, and openai 2\.54\.0 is installed: give the agent the base URL"):
        oj.client()
