"""Clients of the user's own: a plain function with a synchronous one, and one that streams; each is paid for once."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import openai
import pytest

import optimas_jax as oj
from optimas_jax.core.running import event_loop
from optimas_jax.core.types import StopRun

WORDS = ["Li", "ma", "."]


class Server(BaseHTTPRequestHandler):
    """Answers every chat with the same words, streamed if asked to."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append(body["messages"][-1]["content"])
        shape = {"id": "1", "created": 0, "model": body["model"]}
        if body.get("stream"):
            chunks = [{"index": 0, "delta": {"content": word}, "finish_reason": None} for word in WORDS]
            lines = [json.dumps({**shape, "object": "chat.completion.chunk", "choices": [chunk]}) for chunk in chunks]
            data, kind = "".join(f"data: {line}\n\n" for line in [*lines, "[DONE]"]), "text/event-stream"
        else:
            message = {"role": "assistant", "content": "".join(WORDS)}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            data, kind = json.dumps({**shape, "object": "chat.completion", "choices": [choice]}), "application/json"
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data.encode())))
        self.end_headers()
        self.wfile.write(data.encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as http:
        http.asked = []
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield http
        http.shutdown()


def test_a_plain_function_with_a_synchronous_client_and_one_that_streams(server, tmp_path):
    address = f"http://127.0.0.1:{server.server_address[1]}/v1"
    client = openai.OpenAI(base_url=address, api_key="none")
    streaming = openai.AsyncOpenAI(base_url=address, api_key="none")

    @oj.component(effect=True)
    def guess(question: str) -> str:
        """Asks at once."""
        messages = [{"role": "user", "content": f"Guess: {question}"}]
        return client.chat.completions.create(model="own", messages=messages).choices[0].message.content

    @oj.component(prompt=oj.prompt("Answer in a word."))
    async def answer(prompt, question, guessed):
        """Asks in a stream, and returns the whole text."""
        content = f"{prompt.text}\n{question} ({guessed})"
        messages = [{"role": "user", "content": content}]
        stream = await streaming.chat.completions.create(model="own", messages=messages, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def ask(question):
        return await answer(question, await guess(question))

    rows = [{"question": f"q{number}", "gold": "Lima."} for number in range(3)]
    program = oj.program(ask, components=[guess, answer])
    for _ in range(2):
        done = oj.evaluate(program, lambda example, outputs: outputs == example["gold"], rows, workdir=tmp_path)
        assert done.mean == 1.0 and [row["outputs"] for row in done.rows] == [{"output": "Lima."}] * 3
    client.close()
    event_loop.run(streaming.close())  # on the loop that it lives on
    assert sorted(server.asked) == sorted(
        [f"Guess: q{number}" for number in range(3)] + [f"Answer in a word.\nq{number} (Lima.)" for number in range(3)]
    )


def test_a_limit_of_tokens_that_own_clients_pass_by_is_warned_of(tmp_path, capsys):
    @oj.component(prompt=oj.prompt("Answer in a word."))
    def answer(prompt, question):
        return "Lima."

    async def ask(question):
        return await answer(question)

    def grade(example, outputs):
        raise RuntimeError("not today")

    rows = [{"question": f"q{number}"} for number in range(36)]
    for limit, warned in (({"budget.tokens": 100}, True), ({"budget.calls": 1000}, False), ({}, False)):
        config = {"reward.model": "random:0", **limit}
        with pytest.raises(StopRun, match="not today"):
            oj.optimize(
                oj.program(ask, components=[answer]),
                grade,
                rows,
                model="random:0",
                workdir=tmp_path / "-".join(["run", *limit]),
                config=config,
            )
        words = "answer may ask models by clients of their own"
        assert (words in " ".join(capsys.readouterr().out.split())) is warned
