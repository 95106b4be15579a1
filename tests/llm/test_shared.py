"""Results shared by processes: paid once, whoever asks, whatever happens to the one that pays."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import signal
import subprocess
import sys
import time

import pytest
from fakes import ScriptedCompleter, request

from optimas_jax.llm.sandbox import SandboxCompleter
from optimas_jax.llm.shared import ResultFiles, SharedCompleter
from optimas_jax.llm.tapes.tape import TapeError

# Asks for the same texts as other processes, and notes every call of the model in a file.
ASKS = """
import asyncio, sys
from pathlib import Path
from fakes import ScriptedCompleter, request
from optimas_jax.llm.shared import SharedCompleter

folder, delay, count = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])

def answer(asked):
    with (folder / "calls").open("a") as file:
        file.write(asked.messages[0].content + "\\n")
    return "answer to " + asked.messages[0].content

async def main():
    shared = SharedCompleter(folder, ScriptedCompleter(answer, delay))
    print("ready", flush=True)
    for one in await asyncio.gather(*(shared.complete(request(f"text {i}")) for i in range(count))):
        print(one.text, flush=True)

asyncio.run(main())
"""


def start(folder, delay, count):
    command = [sys.executable, "-c", ASKS, str(folder), str(delay), str(count)]
    path = {"PYTHONPATH": ":".join(filter(None, sys.path))}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**path, "PATH": ""})


def calls(folder):
    return sorted((folder / "calls").read_text().split("\n")[:-1])


def test_processes_that_ask_for_the_same_pay_once(tmp_path):
    both = [start(tmp_path, 0.5, 20) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0].split("\n")[1:-1] for process in both]
    assert outputs[0] == outputs[1] == [f"answer to text {i}" for i in range(20)]
    assert calls(tmp_path) == sorted(f"text {i}" for i in range(20))


def test_what_a_killed_process_had_claimed_is_asked_again(tmp_path):
    slow = start(tmp_path, 600, 1)
    assert slow.stdout.readline() == "ready\n"
    second = start(tmp_path, 0, 1)
    second.stdout.readline()
    time.sleep(0.3)
    assert second.poll() is None  # it waits for the first
    slow.send_signal(signal.SIGKILL)
    slow.communicate()
    assert second.communicate(timeout=60)[0] == "answer to text 0\n"
    assert calls(tmp_path) == ["text 0"]


def test_a_failure_is_the_failure_of_its_request_alone(tmp_path):
    shared = SharedCompleter(tmp_path, ScriptedCompleter(lambda asked: OSError("gone")))
    with pytest.raises(OSError, match="gone"):
        asyncio.run(shared.complete(request("a")))
    shared.close()
    other = SharedCompleter(tmp_path, ScriptedCompleter(lambda asked: "well"))
    assert asyncio.run(other.complete(request("a"))).text == "well"
    other.close()


def test_a_result_costs_what_it_cost_whoever_paid(tmp_path):
    asked = ScriptedCompleter(lambda asked: "four words of answer")
    shared = SharedCompleter(tmp_path, SandboxCompleter(asked))
    first = asyncio.run(shared.complete(request("a")))
    second = asyncio.run(shared.complete(request("a", role="another")))
    shared.close()
    assert first.usage == second.usage and first.usage.completion_tokens and len(asked.requests) == 1


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"123", b"{}", b'{"result": {}}', b"\xff", b"[" * 10**5])
def test_a_damaged_result_is_not_paid_for_again_without_a_word(tmp_path, damage):
    asked = ScriptedCompleter(lambda asked: "well")
    shared = SharedCompleter(tmp_path, asked)
    first = asyncio.run(shared.complete(request("a")))
    [path] = tmp_path.glob("*/*.json")
    assert path.parent.name == path.stem[:2] and json.loads(path.read_text())["kind"] == "completion"
    path.write_bytes(damage)
    with pytest.raises(TapeError, match=r"the shared result .*json is damaged \(.*delete it, and it is asked for"):
        asyncio.run(shared.complete(request("a")))
    path.unlink()
    assert asyncio.run(shared.complete(request("a"))) == first and len(asked.requests) == 2
    assert ResultFiles(tmp_path).get(request("a")) == first and len(ResultFiles(tmp_path)) == 1
    shared.close()


def test_what_arrives_is_kept_though_its_caller_is_cancelled(tmp_path, monkeypatch):
    entered, put = [], ResultFiles.put

    def slow(self, effect, result):
        entered.append(effect)
        time.sleep(0.3)
        put(self, effect, result)

    monkeypatch.setattr(ResultFiles, "put", slow)

    async def cancelled():
        shared = SharedCompleter(tmp_path, ScriptedCompleter(lambda asked: "well"))
        task = asyncio.ensure_future(shared.complete(request("a")))
        while not entered:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(ResultFiles(tmp_path)) == 1
        shared.close()

    asyncio.run(cancelled())


def test_a_file_system_without_locks_is_refused(tmp_path, monkeypatch):
    def no_locks(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    shared = SharedCompleter(tmp_path, ScriptedCompleter(lambda asked: "well"))
    monkeypatch.setattr(fcntl, "lockf", no_locks)
    with pytest.raises(TapeError, match=r"has no locks .*use a --workdir on another one"):
        asyncio.run(shared.complete(request("a")))
    shared.close()
