"""Answers of servers that are none: to the requests of one proposal alone, and to all requests."""

import dataclasses
import gzip
import json

import pytest
from api_servers import ApiServers, prompt_of, success
from paid_runs import paid_config, run
from served import serving_app
from starlette.responses import HTMLResponse, Response, StreamingResponse

from optimas_jax.llm.attempts import ServerError

pytestmark = pytest.mark.long


def changed(**fields):
    """An answer of chat completions with other fields in its choice and its message."""

    def make(kind, body):
        whole = success(kind, body, "Paris", "")
        if kind == "messages":
            return Response(json.dumps(whole | {"content": fields.get("content", 5)}))
        usage = fields.get("usage", whole["usage"])
        choice = whole["choices"][0]
        message = choice["message"] | {name: fields[name] for name in fields if name in ("content", "tool_calls")}
        rest = {name: fields[name] for name in fields if name not in message and name != "usage"}
        return Response(json.dumps(whole | {"usage": usage, "choices": [choice | {"message": message} | rest]}))

    return make


def body_of(content):
    return lambda kind, body: Response(content, media_type="application/json")


def encoded(encoding):
    return lambda kind, body: Response(json.dumps(success(kind, body, "Paris", "")).encode(encoding))


def status(code, text="no"):
    body = json.dumps({"error": {"message": text, "code": None}})
    return lambda kind, _: Response(body, code, media_type="application/json")


PACKED = gzip.compress(json.dumps({"choices": [{"message": {"content": list(range(1000))}}]}).encode())


ODD = {
    "no choices": body_of('{"choices": []}'),
    "choices missing": body_of('{"object": "chat.completion"}'),
    "choices null": body_of('{"choices": null}'),
    "choices text": body_of('{"choices": "a", "content": "a"}'),
    "choice without message": body_of('{"choices": [{}], "content": [{}]}'),
    "message null": body_of('{"choices": [{"message": null}], "content": [null]}'),
    "content number": changed(content=3),
    "content object": changed(content={"text": "a"}),
    "content of numbers": changed(content=[3]),
    "part without text": changed(content=[{"type": "text", "text": 5}]),
    "error with status 200": body_of('{"error": {"message": "busy", "code": 429}}'),
    "error that is a text": body_of('{"error": "busy"}'),
    "list": body_of("[]"),
    "text": body_of('"text"'),
    "number": body_of("5"),
    "null": body_of("null"),
    "page": lambda kind, body: HTMLResponse("<html>Bad gateway</html>"),
    "nothing": body_of(""),
    "half": body_of('{"choices": [{"message": {"content": "Par'),
    "deep": body_of('{"choices": ' + "[" * 100_000),
    "digits": body_of('{"choices": [{"index": ' + "9" * 5000 + "}]}"),
    "bytes": body_of(b"\xff\xfe\x00{"),
    "body ends early": lambda kind, body: StreamingResponse(iter([b'{"id":']), headers={"content-length": "1000"}),
    "tool calls that are none": changed(content="a", tool_calls=[1, {"function": 2}]),
    "usage text": changed(content="a", usage={"prompt_tokens": "5", "completion_tokens": None}),
    "usage negative": changed(content="a", usage={"prompt_tokens": -5, "completion_tokens": -5}),
    "usage infinite": changed(content="a", usage={"prompt_tokens": 1e999, "completion_tokens": 2}),
    "lone surrogate": changed(content="answer \ud83d"),
    "NUL": changed(content="a\0b"),
    "null content": changed(content=None),
    "finish reason number": changed(content="a", finish_reason=7),
    "reasoning alone": changed(content="<think>Is it Paris? It may"),
    "refused": status(400, "this prompt is odd"),
    "flagged": status(403, "your input was flagged by moderation"),
    "too large": status(413),
    "unprocessable": status(422, "[{'loc': ['body', 'messages', 0]}]"),
    "too long": status(400, "maximum context length is 8 tokens"),
    "teapot": status(418),
    "broken": status(500),
    "limited": status(429),
    "choices by name": body_of('{"choices": {"0": {"message": {"content": "a"}}}, "content": {"0": 1}}'),
    "choices of lists": body_of('{"choices": [[1]], "content": [[1]]}'),
    "lists in lists": changed(content=[[["a"]]]),
    "content that is no number": body_of('{"choices": [{"message": {"content": NaN}}], "content": NaN}'),
    "key twice": body_of('{"choices": [], "choices": [{"message": {"content": "a", "content": 5}}], "content": 5}'),
    "tool without arguments": changed(content=None, tool_calls=[{"id": "a", "function": {"name": "f"}}]),
    "usage of parts": changed(content="a", usage={"prompt_tokens": 5.5, "completion_tokens": 0.1}),
    "usage huge": changed(content="a", usage={"prompt_tokens": 10**300, "completion_tokens": 10**18}),
    "finish reason long": changed(content="a", finish_reason="x" * 1_000_000),
    "stream": body_of('data: {"choices": [{"delta": {"content": "a"}}]}\n\ndata: [DONE]\n\n'),
    "two answers": lambda kind, body: Response(json.dumps(success(kind, body, "Paris", "")) * 2),
    "UTF-16": encoded("utf-16"),
    "byte order mark": encoded("utf-8-sig"),
    "packed and cut": lambda kind, body: Response(PACKED[:60], headers={"content-encoding": "gzip"}),
    "not packed": lambda kind, body: Response(b"{}", headers={"content-encoding": "gzip"}),
    "around": lambda kind, body: Response(b"", 307, headers={"location": "/v1/chat/completions"}),
    "elsewhere": lambda kind, body: Response(b"", 302),
    "no content": lambda kind, body: Response(b"", 204),
    "half a character": status(400, "\ud83d"),
}
# Which a server may give to everybody, and still have answered: an outcome of each run.
READ = {"usage text", "usage negative", "usage infinite", "lone surrogate", "NUL", "null content", "reasoning alone"}
READ |= {"finish reason number", "tool calls that are none", "tool without arguments", "usage of parts", "usage huge"}
READ |= {"finish reason long", "UTF-16", "byte order mark"}


PROPOSER = 17  # tokens of its answers, by which its requests are known
PROPOSED = "a proposal was asked for"


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The results of a run without faults."""
    servers = ApiServers()
    with serving_app(servers.app, log_level="critical") as address:
        return run(paid_config(address), tmp_path_factory.mktemp("straight"))


@pytest.fixture(autouse=True)
def keys(monkeypatch):
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.setenv(name, "sk-planted-key-of-a-test")


@pytest.mark.parametrize("asked", ["component", "proposer"])
@pytest.mark.parametrize("name", ODD)
def test_an_odd_answer_to_one_proposal_ends_neither_the_run_nor_its_resume(name, asked, tmp_path):
    servers, first, defaults = ApiServers(), [], set()

    def odd(kind, body):
        """Always the same for the first proposal: for the request that asks for it, or for its prompt."""
        system = body["messages"][0]["content"]
        if body["max_tokens"] == PROPOSER:
            key = prompt_of(body) if asked == "proposer" else None
            defaults.add(system)
        else:
            key = system if asked == "component" and defaults & {PROPOSED} and system not in defaults else None
        if body["max_tokens"] == PROPOSER:
            defaults.add(PROPOSED)
        elif PROPOSED not in defaults:
            defaults.add(system)
        first[:] = first or [key] * (key is not None)
        return ODD[name](kind, body) if first and key == first[0] else None

    servers.odd = odd
    with serving_app(servers.app, log_level="critical") as address:
        config = paid_config(address)
        proposer = dataclasses.replace(config.proposer, model="openai:gpt-4o-mini", max_tokens=PROPOSER)
        config = dataclasses.replace(config, proposer=proposer)
        results = run(config, tmp_path)
        before = len(servers.bodies)
        assert run(config, tmp_path) == results and len(servers.bodies) == before and first


@pytest.mark.parametrize("name", [name for name in ODD if name not in READ])
def test_an_odd_answer_to_everybody_stops_the_run_and_the_folder_goes_on(name, tmp_path, straight):
    servers = ApiServers()
    with serving_app(servers.app, log_level="critical") as address:
        config = paid_config(address)
        servers.odd = ODD[name]
        with pytest.raises(ServerError) as raised:
            run(config, tmp_path)
        assert "\n" not in str(raised.value)
        servers.odd = lambda kind, body: None
        results = run(config, tmp_path)
    for field in ("baseline", "optimized", "gain", "accepted", "confirmed"):
        assert results[field] == straight[field]
