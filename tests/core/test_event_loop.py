import asyncio
import signal
import subprocess
import sys
import threading

import pytest
from systems import example, system

from optimas_jax.core.component import Component
from optimas_jax.core.running import event_loop
from optimas_jax.core.running.execution import Job, run_many
from optimas_jax.core.values import Configuration


class Pool:
    """A client with a pooled connection, which lives on the loop that it was first used on."""

    def __init__(self):
        self.lock, self.loops = asyncio.Lock(), set()

    async def ask(self, text):
        async with self.lock:  # an asyncio.Lock that is contended belongs to one loop
            self.loops.add(asyncio.get_running_loop())
            await asyncio.sleep(0)
            return text


def test_a_client_made_at_import_lives_across_batches_of_runs():
    client = Pool()

    async def call(fields, value, context):
        return {"a_out": await client.ask(fields["q"])}

    some_system = system(Component("a", "", ("q",), ("a_out",), call), output="a_out")
    jobs = [Job(Configuration({}), example(f"e{i}", q=i), 0) for i in range(8)]
    for _ in range(4):
        assert [trace.score for trace in run_many(some_system, jobs, concurrency=4)] == list(range(8))
    assert len(client.loops) == 1


def test_it_runs_where_another_loop_runs():
    async def notebook():
        return event_loop.run(asyncio.sleep(0, "done"))

    assert asyncio.run(notebook()) == "done"


def test_a_call_that_would_wait_for_itself_is_an_error():
    async def outer():
        event_loop.run(asyncio.sleep(0))

    with pytest.raises(RuntimeError, match="await its asynchronous form"):
        event_loop.run(outer())


def test_errors_are_raised_and_the_loop_lives_on():
    async def fail(error):
        raise error

    for error in (ValueError("no"), SystemExit(3), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            event_loop.run(fail(error))
    assert event_loop.run(asyncio.sleep(0, 1)) == 1


def test_threads_share_the_loop():
    results = []
    threads = [threading.Thread(target=lambda i=i: results.append(event_loop.run(asyncio.sleep(0, i)))) for i in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [1, 2]


def test_an_interrupt_waits_for_the_end_of_what_runs():
    code = """
import asyncio, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background commands ignore it
from optimas_jax.core.running import event_loop
async def work():
    print("started", flush=True)
    try:
        await asyncio.sleep(60)
    finally:
        await asyncio.sleep(0.05)
        print("recorded", flush=True)
try:
    event_loop.run(work())
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
    command = [sys.executable, "-W", "error", "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "started\n"
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=30)[0].split() == ["recorded", "interrupted"]
        finally:
            process.kill()
    assert process.returncode == 0


def in_a_task(function, *, cancelled_after=None):
    """Awaits a function in a thread of its own; cancelled once the event is set, without waking the loop, as a
    notebook's interrupt does."""

    async def main():
        task = asyncio.ensure_future(event_loop.in_thread(function))
        if cancelled_after is not None:
            threading.Thread(target=lambda: cancelled_after.wait() and task.cancel()).start()
        return await task

    return asyncio.run(main())


def test_a_function_in_a_thread_returns_and_raises_and_leaves_the_callers_loop_free():
    assert in_a_task(lambda: event_loop.run(asyncio.sleep(0, "done"))) == "done"
    with pytest.raises(ZeroDivisionError):
        in_a_task(lambda: 1 / 0)

    async def both():
        opened = threading.Event()
        waiting = asyncio.ensure_future(event_loop.in_thread(lambda: opened.wait(30)))
        await asyncio.sleep(0.01)  # the loop turns meanwhile
        opened.set()
        return await waiting

    assert asyncio.run(both())


@pytest.mark.parametrize("computes", [True, False])
def test_cancelling_interrupts_the_function_and_waits_for_its_end(computes):
    began, ended = threading.Event(), []

    async def request():
        began.set()
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.05)
            ended.append("recorded")

    def work():
        try:
            if computes:
                began.set()
                while True:
                    pass
            event_loop.run(request())
        except KeyboardInterrupt:
            ended.append("interrupted")
            raise

    with pytest.raises(asyncio.CancelledError):
        in_a_task(work, cancelled_after=began)
    assert ended == [*([] if computes else ["recorded"]), "interrupted"]
    assert event_loop.run(asyncio.sleep(0, 1)) == 1  # it lives on
