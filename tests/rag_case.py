"""The pipeline of ``shared/cases/rag`` behind a scripted server, and a recording of its calls.

The server's model mostly finds the fact, but answers in a sentence; shown an example it follows the form. Equal
requests get different answers in turn, as of a model that is sampled.
"""

from __future__ import annotations

import collections
import contextlib
import csv
import hashlib
import importlib.util
import json
import os
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

CASE = next((p / "shared" / "cases" / "rag" for p in Path(__file__).parents if (p / "shared" / "cases").is_dir()), None)


class Model:
    """Answers to messages; counts requests, and keeps them."""

    def __init__(self, seed: int, rows: list[dict[str, Any]]):
        self.seed, self.rows = seed, {row["question"]: row for row in rows}
        self.calls: list[tuple[list[dict[str, str]], str]] = []
        self._asked: collections.Counter[str] = collections.Counter()
        self._lock = threading.Lock()

    def answer(self, messages: list[dict[str, str]]) -> str:
        key = json.dumps(messages)
        with self._lock:
            self._asked[key] += 1
            text = self._says(messages, f"{self.seed}/{key}/{self._asked[key]}")
            self.calls.append((messages, text))
        return text

    def _says(self, messages: list[dict[str, str]], key: str) -> str:
        def chance(what: str) -> float:
            return int(hashlib.sha256(f"{key}/{what}".encode()).hexdigest()[:8], 16) / 2**32

        system, user = messages[0]["content"], messages[-1]["content"]
        question = re.search(r"^question: (.*)$", user, re.MULTILINE)
        row = self.rows.get(question[1] if question else "", {})
        shown = "Example:" in system
        if "supported" in system:
            return json.dumps({"supported": chance("check") < 0.7, "problem": "not in the passages"})
        if "final answer" in system:
            draft = re.search(r"^draft: (.*)$", user, re.MULTILINE)
            text = draft[1] if draft else ""
            number = row["source"] if row and text == row["answer"] else 0
            if chance("form") < (1.0 if shown else 0.2):
                return json.dumps({"answer": text, "source": number})
            return json.dumps({"answer": f"I think that it must be {text}, as one of the passages says", "source": ""})
        right = chance("draft") < (1.0 if shown else 0.6)
        return row.get("answer", "unknown") if right else "something that is not said"


@contextlib.contextmanager
def serving(model: Model) -> Iterator[None]:
    """A server that answers for the model, named in the environment as OpenAI's."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            message = {"role": "assistant", "content": model.answer(body["messages"])}
            usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            answer = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
            data = json.dumps({**answer, "usage": usage}).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    before = {name: os.environ.get(name) for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY")}
    os.environ.update(OPENAI_BASE_URL=f"http://127.0.0.1:{server.server_port}/v1", OPENAI_API_KEY="x")
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def pipeline(folder: Path) -> Iterator[Any]:
    """The user's module, copied into a folder; its client is made at import."""
    assert CASE is not None
    shutil.copytree(CASE, folder / "rag", dirs_exist_ok=True)
    name = f"user_pipeline_{folder.name}"
    spec = importlib.util.spec_from_file_location(name, folder / "rag" / "pipeline.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    try:
        yield module
    finally:
        del sys.modules[name]


def questions() -> list[dict[str, Any]]:
    assert CASE is not None
    return [json.loads(line) for line in (CASE / "questions.jsonl").read_text().splitlines()]


def passages() -> list[dict[str, str]]:
    assert CASE is not None
    with (CASE / "passages.csv").open(newline="") as file:
        return list(csv.DictReader(file))


async def record(module: Any, model: Model, rows: list[dict[str, Any]], file: Path, most: int) -> int:
    """Runs the pipeline as it is on rows, and writes each call with its run and the run's score; returns how many."""
    lines: list[str] = []
    for number, row in enumerate(rows):
        begin = len(model.calls)
        made = await module.pipeline(row["question"])
        score, feedback = module.metric(row, made)
        calls = model.calls[begin:]
        if len(lines) + len(calls) > most:
            break
        for messages, text in calls:
            answer = {"choices": [{"message": {"role": "assistant", "content": text}}]}
            request = {"model": "m", "messages": messages}
            told = {"trace_id": f"run-{number}", "score": score, "feedback": feedback}
            lines.append(json.dumps({"request": request, "response": answer, **told}))
    await module.client.close()
    file.write_text("\n".join(lines) + "\n")
    return len(lines)
