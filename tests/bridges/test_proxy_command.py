"""``optimas proxy``: agents of a file and of a run, and what it refuses."""

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from api_servers import ApiServers
from served import serving_app

ROOT = Path(__file__).parents[2]
AGENTS = 'import optimas_jax as oj\n\nteller = oj.agent("teller", "Tell.", max_tokens=4)\n'


def command(*arguments):
    return [sys.executable, str(ROOT / "launch" / "proxy.py"), *arguments]


def test_agents_of_a_file_answer_until_the_server_is_stopped(tmp_path):
    (tmp_path / "agents.py").write_text(AGENTS)
    arguments = (f"--agents={tmp_path / 'agents.py'}", "--model=openai:served", "--port=0")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with serving_app(ApiServers().app) as model:
        variables = {**os.environ, "OPENAI_BASE_URL": f"{model}/v1", "OPENAI_API_KEY": "none"}
        process = subprocess.Popen(command(*arguments), env=variables, **pipes)
        asked_and_stopped(process)


def asked_and_stopped(process):
    try:
        line = process.stdout.readline()
        assert line.startswith("agents teller: http://127.0.0.1:")
        body = json.dumps({"model": "teller", "messages": [{"role": "user", "content": "Hi."}]}).encode()
        url = f"{line.split()[-1]}/chat/completions"
        with urllib.request.urlopen(urllib.request.Request(url, body), timeout=60) as response:
            assert json.load(response)["choices"][0]["message"]["content"] == "Hi."
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 143
    finally:
        process.kill()
        process.communicate()


def test_a_request_in_flight_is_answered_before_the_end(tmp_path):
    (tmp_path / "agents.py").write_text(AGENTS)
    arguments = (f"--agents={tmp_path / 'agents.py'}", "--model=openai:served", "--port=0")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    servers, arrived, stopped = ApiServers(), threading.Event(), threading.Event()

    def wait(kind, body):
        arrived.set()
        assert stopped.wait(60)

    servers.odd = wait
    body = json.dumps({"model": "teller", "messages": [{"role": "user", "content": "Hi."}]}).encode()
    with serving_app(servers.app) as model, ThreadPoolExecutor() as pool:
        variables = {**os.environ, "OPENAI_BASE_URL": f"{model}/v1", "OPENAI_API_KEY": "none"}
        process = subprocess.Popen(command(*arguments), env=variables, **pipes)
        try:
            url = f"{process.stdout.readline().split()[-1]}/chat/completions"
            asked = pool.submit(lambda: urllib.request.urlopen(urllib.request.Request(url, body), timeout=60).read())
            assert arrived.wait(60)
            process.send_signal(signal.SIGTERM)
            assert "1 request in flight" in process.stderr.readline() + process.stderr.readline()
            stopped.set()
            assert json.loads(asked.result(60))["choices"][0]["message"]["content"] == "Hi."
            assert process.wait(20) == 143
        finally:
            stopped.set()
            process.kill()
            process.communicate()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "give --system=FOLDER of a run, or --agents=FILE.py"),
        (("--agents=missing.py",), "No such file or directory"),
        (("--agents=EMPTY",), "declares no agent"),
        (("--system=missing",), "missing"),
    ],
)
def test_what_cannot_be_served_is_refused(arguments, words, tmp_path):
    (tmp_path / "empty.py").write_text("")
    arguments = [one.replace("EMPTY", str(tmp_path / "empty.py")) for one in arguments]
    done = subprocess.run(command(*arguments), capture_output=True, text=True, check=False)
    assert done.returncode and words in done.stdout + done.stderr
