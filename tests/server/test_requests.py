"""Bodies, fields and keys: what is refused, and by which words; nothing is taken with another meaning."""

import asyncio
import json
import socket
import threading
import time

import httpx2
import pytest
import tiny
from served import serving, serving_app

from optimas_jax.core.types import StopRun
from optimas_jax.llm.local import LocalCompleter
from optimas_jax.server.app import make_app
from optimas_jax.server.gate import Gate, is_loopback, read_key

GOOD = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8, "temperature": 0}
TEXT = {"model": "m", "prompt": "The", "max_tokens": 8, "temperature": 0}
CHAT_PATH, TEXT_PATH = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(scope="module")
def sampler():
    return tiny.sampler()


@pytest.fixture(scope="module")
def url(sampler):
    with serving(sampler, "m") as address:
        yield address


@pytest.fixture(scope="module")
def http(url):
    with httpx2.Client(base_url=url, timeout=60) as client:
        yield client


def user(content):
    return {"messages": [{"role": "user", "content": content}]}


# Change of a chat request -> the field that the answer names.
BAD = [
    ({"stop": 5}, "stop"),
    ({"stop": True}, "stop"),
    ({"stop": {"a": 1}}, "stop"),
    ({"stop": [""]}, "stop"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"stop": "x" * 1001}, "stop"),
    ({"stream": "no"}, "stream"),
    ({"stream_options": []}, "stream_options"),
    ({"stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
    (user("a\ud800b"), "messages[0].content"),
    (user(None), "messages[0].content"),
    (user([{"type": "text", "text": None}]), "messages[0].content"),
    (user([{"type": "image_url", "image_url": {"url": "x"}}]), "messages[0].content"),
    ({"messages": "hi"}, "messages"),
    ({"messages": ["hi"]}, "messages[0]"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": "x", "tool_calls": [{}]}]}, "messages[0].tool_calls"),
    ({"messages": [{"content": "x"}]}, "messages[0].role"),
    ({"min_p": 0.9}, "min_p"),
    ({"stop_token_ids": [5]}, "stop_token_ids"),
    ({"ignore_eos": True}, "ignore_eos"),
    ({"min_tokens": 3}, "min_tokens"),
    ({"guided_json": {}}, "guided_json"),
    ({"of_next_year": 1}, "of_next_year"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"seed": 1.5}, "seed"),
    ({"seed": 2**64}, "seed"),
    ({"temperature": float("nan")}, "temperature"),
    ({"temperature": float("inf")}, "temperature"),
    ({"temperature": "1"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"n": 0}, "n"),
    ({"n": True}, "n"),
    ({"max_tokens": 16.0}, "max_tokens"),
    ({"max_completion_tokens": "16"}, "max_completion_tokens"),
    ({"logprobs": 1}, "logprobs"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"response_format": "json"}, "response_format"),
    ({"model": 5}, "model"),
    ({"model": ""}, "model"),
]


def error_of(response, status):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return error


@pytest.mark.parametrize(("change", "param"), BAD)
def test_a_bad_field_is_named(http, change, param):
    content = json.dumps({**GOOD, **change}).encode()
    assert error_of(http.post(CHAT_PATH, content=content), 400)["param"] == param


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": 5}, "prompt"),
        ({"prompt": [[1, 2]]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a"] * 20, "n": 64}, "n"),
        ({"logprobs": 5}, "logprobs"),
        ({"echo": True}, "echo"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "x"}, "suffix"),
    ],
)
def test_a_bad_field_of_a_text_completion_is_named(http, change, param):
    assert error_of(http.post(TEXT_PATH, json={**TEXT, **change}), 400)["param"] == param


UNUSED = {
    "frequency_penalty": 0.0,
    "logit_bias": {},
    "tools": [],
    "tool_choice": "none",
    "top_k": -1,
    "min_p": 0,
    "user": "me",
    "metadata": {"a": "b"},
    "store": False,
    "n": None,
    "stop": None,
    "response_format": {"type": "text"},
    "of_next_year": None,
}


def test_fields_that_say_nothing_change_nothing(http):
    plain, with_them = (http.post(CHAT_PATH, json={**GOOD, **more}).json() for more in ({}, UNUSED))
    assert plain["choices"] == with_them["choices"]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[" * 200_000, b"null", b"[]", b"5", b"\xff\xfe", b'{"model": ' + b"9" * 6000 + b"}", b'{"a":1e999}'],
)
def test_a_body_that_is_no_request_is_told_so(http, content):
    error_of(http.post(CHAT_PATH, content=content), 400)


def test_every_path_and_method_has_a_json_error(http):
    error_of(http.post("/v1/embeddings", json={}), 404)
    error_of(http.get(CHAT_PATH), 405)
    error_of(http.get("/v1/models/absent"), 404)
    error_of(http.get("/" + "x" * 1000), 404)
    assert http.get("/v1/models/m").json()["id"] == "m"
    error_of(http.post("/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": "/etc/hostname"}), 400)
    error_of(http.post("/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": "a\x00b"}), 400)
    own = http.post("/v1/load_lora_adapter", json={"lora_name": "m", "lora_path": "/tmp"})
    assert "another name" in error_of(own, 400)["message"]


def test_schemas_that_cannot_be_kept_to(http):
    nested = {"type": "array"}
    for _ in range(300):
        nested = {"type": "array", "items": nested}
    for schema in ({"type": "x"}, {"type": "string", "pattern": "("}, nested, {"$ref": "#/nowhere"}):
        form = {"type": "json_schema", "json_schema": {"name": "p", "schema": schema}}
        for stream in (False, True):
            answer = http.post(CHAT_PATH, json={**GOOD, "response_format": form, "stream": stream})
            assert error_of(answer, 400)["param"] == "response_format"


def test_large_bodies_are_refused_and_not_kept(http, url):
    assert "larger than" in error_of(http.post(CHAT_PATH, content=b" " * 5_000_000), 413)["message"]

    def parts():
        for _ in range(80):
            yield b" " * 65_536

    error_of(http.post(CHAT_PATH, content=parts()), 413)
    error_of(http.post(CHAT_PATH, json={**GOOD, **user("x" * 900_000)}), 400)  # and is not tokenised
    assert http.get("/health").status_code == 200


def test_a_template_that_refuses_is_told(http, sampler, monkeypatch):
    template = "{{ raise_exception('System role not supported') }}"
    monkeypatch.setattr(sampler.tokenizer.backend, "chat_template", template)
    error = error_of(http.post(CHAT_PATH, json=GOOD), 400)
    assert "System role not supported" in error["message"] and error["param"] == "messages"


def test_white_space_and_bytes_are_those_of_the_tokens(http):
    for seed in range(12):
        body = {"logprobs": True, "temperature": 1, "seed": seed, "max_tokens": 12}
        [chat] = http.post(CHAT_PATH, json={**GOOD, **user("日本"), **body}).json()["choices"]
        content = bytes(byte for token in chat["logprobs"]["content"] for byte in token["bytes"])
        assert shown(content.decode(errors="replace")) == chat["message"]["content"]
        [text] = http.post(TEXT_PATH, json={**TEXT, **body, "logprobs": 0}).json()["choices"]
        tokens, offsets = text["logprobs"]["tokens"], text["logprobs"]["text_offset"]
        assert "\ufffd" in "".join(tokens) or shown("".join(tokens)) == text["text"]
        assert offsets[0] == 0 and len(offsets) == len(tokens)


def test_streams_add_up_to_the_answer_whatever_its_characters(http):
    for seed in range(12):
        body = {**GOOD, **user("日本"), "temperature": 2, "seed": seed, "max_tokens": 24}
        whole = http.post(CHAT_PATH, json=body).json()["choices"][0]["message"]["content"]
        lines = http.post(CHAT_PATH, json={**body, "stream": True}).text.splitlines()
        events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        assert "".join(event["choices"][0]["delta"].get("content") or "" for event in events) == whole


def shown(text):
    """A text as answers have it: NUL is no text (``core.types``)."""
    return text.replace("\x00", "\ufffd")


def test_a_prompt_counts_once_however_many_answers_it_has(http):
    one, three = (http.post(CHAT_PATH, json={**GOOD, "n": n}).json()["usage"] for n in (1, 3))
    assert one["prompt_tokens"] == three["prompt_tokens"]
    assert three["completion_tokens"] == 3 * one["completion_tokens"]
    parts = http.post(CHAT_PATH, json={**GOOD, "n": 3, "stream": True, "stream_options": {"include_usage": True}})
    events = [json.loads(line[6:]) for line in parts.text.splitlines() if line.startswith("data: {")]
    assert events[-1]["usage"] == three


def test_clients_that_leave_are_not_served_to_the_end(url, sampler):
    """Streamed or not; the rows are free at the next step, and others are answered meanwhile."""
    completer = LocalCompleter("random:0", lambda: sampler)
    with serving_app(make_app(completer, "random:0", "m")) as address:
        host, port = address.removeprefix("http://").split(":")
        for stream in (False, True):
            endless = {**TEXT, "max_tokens": 8000, "stream": stream, "temperature": 0.0}
            body = json.dumps(endless).encode()
            head = f"POST {TEXT_PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(head + body)
                wait_for(lambda: completer.in_flight)
                answer = httpx2.post(f"{address}{TEXT_PATH}", json=TEXT, timeout=60)
                assert answer.status_code == 200 and completer.in_flight
            wait_for(lambda: not completer.in_flight)
    completer.close()


def wait_for(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# Keys


@pytest.fixture(scope="module")
def guarded(sampler):
    completer = LocalCompleter("random:0", lambda: sampler)
    with serving_app(Gate(make_app(completer, "random:0", "m"), "a-long-key")) as address:
        yield address
    completer.close()


@pytest.mark.parametrize(
    "given", [None, "", "Bearer", "Bearer wrong", "Bearer a-long-key2", "Basic a-long-key", "a-long-key"]
)
def test_without_the_key_nothing_is_answered(guarded, given):
    headers = {} if given is None else {"authorization": given}
    for method, path in (("GET", "/v1/models"), ("POST", CHAT_PATH), ("GET", "/"), ("POST", "/v1/load_lora_adapter")):
        response = httpx2.request(method, guarded + path, headers=headers)
        assert error_of(response, 401)["code"] == "invalid_api_key" and "a-long-key" not in response.text
    assert httpx2.get(f"{guarded}/health").status_code == 200


def test_with_the_key_all_is_answered(guarded):
    headers = {"authorization": "bearer  a-long-key"}
    assert httpx2.get(f"{guarded}/v1/models", headers=headers).status_code == 200


def test_open_addresses_need_a_key(monkeypatch):
    assert [is_loopback(host) for host in ("127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost")] == [True] * 5
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.org", "")))
    assert read_key("", "127.0.0.1") == ""
    with pytest.raises(StopRun, match=r"--host=0\.0\.0\.0 is reached from other machines.*--api-key-env=NAME"):
        read_key("", "0.0.0.0")
    with pytest.raises(StopRun, match="no key under this name"):
        read_key("NOT_SET_ANYWHERE", "127.0.0.1")
    monkeypatch.setenv("A_KEY", " secret\r\n")
    assert read_key("A_KEY", "0.0.0.0") == "secret"
    monkeypatch.setenv("A_KEY", "sec ret")
    with pytest.raises(StopRun, match="cannot hold") as caught:
        read_key("A_KEY", "0.0.0.0")
    assert "sec ret" not in str(caught.value)


def test_a_gate_that_closes_refuses_what_is_new():
    started, release = threading.Event(), asyncio.Event()

    async def application(scope, receive, send):
        started.set()
        await release.wait()

    async def call(gate):
        sent = []

        async def send(message):
            sent.append(message)

        await gate({"type": "http", "path": "/x", "headers": []}, None, send)
        return sent

    async def main():
        gate = Gate(application)
        first = asyncio.create_task(call(gate))
        await asyncio.to_thread(started.wait)
        gate.closing = True
        refused = await call(gate)
        assert refused[0]["status"] == 503 and gate.active == 1
        release.set()
        await first
        assert gate.active == 0

    asyncio.run(main())
