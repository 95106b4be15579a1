"""A pipeline as users have it (``../shared/cases/rag``), optimised as it is: declarations stand beside it."""

import asyncio
import importlib.util
import json
import re
import shutil
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import optimas_jax as oj
from optimas_jax.report.console import ConsoleProgress
from optimas_jax.rewards.data import load_groups

CASE = next((p / "shared" / "cases" / "rag" for p in Path(__file__).parents if (p / "shared" / "cases").is_dir()), None)
SETTINGS = {
    "reward.model": "random:0",
    "optimize.iterations": 2,
    "optimize.components": "PASSAGES_READ,answer",
    "optimize.instructions": 0,
    "offline.groups": 2,
    "offline.calls": 12,
}


def says(messages):
    """Answers of a model that follows its format: a check that is never content with a draft of odd length, an answer
    with the first passage."""
    system, user = messages[0]["content"], messages[-1]["content"]
    if "supported" in system:
        return json.dumps({"supported": len(user) % 2 == 0, "problem": "of odd length"})
    if "final answer" in system:
        number, title = re.search(r"\[(\d+)\] ([^:]+):", user).groups()
        return json.dumps({"answer": title, "source": int(number)})
    return f"draft of {len(user)}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    requests = 0

    def log_message(self, *args):
        pass

    def do_POST(self):
        Handler.requests += 1
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        message = {"role": "assistant", "content": says(body["messages"])}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        answer = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        data = json.dumps({**answer, "usage": usage}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def pipeline(tmp_path, monkeypatch):
    """The user's module, with its client made at import, and a server behind it."""
    if CASE is None:
        pytest.skip("no shared cases")
    shutil.copytree(CASE, tmp_path / "rag")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    spec = importlib.util.spec_from_file_location("user_pipeline", tmp_path / "rag" / "pipeline.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["user_pipeline"] = module
    spec.loader.exec_module(module)
    yield module
    server.shutdown()
    thread.join()
    server.server_close()
    del sys.modules["user_pipeline"]


def test_an_async_pipeline_with_a_loop_and_its_own_client_is_optimised_unchanged(pipeline, tmp_path):
    rows = [json.loads(line) for line in (CASE / "questions.jsonl").read_text().splitlines()]
    pipeline.draft = oj.component(pipeline.draft, DRAFT=oj.prompt(pipeline.DRAFT))
    pipeline.check = oj.component(pipeline.check, CHECK=oj.prompt(pipeline.CHECK))
    pipeline.answer = oj.component(pipeline.answer, ANSWER=oj.prompt(pipeline.ANSWER))
    pipeline.PASSAGES_READ = oj.setting(pipeline.PASSAGES_READ, choices=(1, 2, 3, 5))

    def optimise():
        return oj.optimize(
            pipeline.pipeline,
            pipeline.metric,
            CASE / "questions.jsonl",
            model=oj.LanguageModel("random:0", max_tokens=4),
            workdir=tmp_path / "run",
            config=SETTINGS,
            progress=ConsoleProgress(quiet=True),
        )

    result = optimise()
    groups = load_groups(tmp_path / "run" / "groups" / "offline")
    assert {group.component for group in groups} == {"PASSAGES_READ", "answer"}
    assert result.results["outcomes"] == {"ok": 19} and 0 < result.results["baseline"]["mean"] < 1
    paid = Handler.requests
    again = optimise()  # from the tape
    assert again.results["baseline"] == result.results["baseline"] and Handler.requests == paid

    answer = result.best(question=rows[0]["question"])
    assert set(answer) == {"answer", "source"}

    async def notebook():
        return await result.best(question=rows[0]["question"])

    assert asyncio.run(notebook()) == answer
    scored = oj.evaluate(
        pipeline.pipeline, pipeline.metric, rows[:6], best=tmp_path / "run" / "best", workdir=tmp_path / "evaluation"
    )
    assert len(scored.rows) == 6 and all(row["outcome"] == "ok" for row in scored.rows)
    wrong = next(row for row in scored.rows if row["score"] < 0.3)
    assert wrong["feedback"].startswith("The answer should be just ")
