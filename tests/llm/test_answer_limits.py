"""Answers that never end, or are too large: each is a fault of its request, soon, and takes little memory."""

import asyncio
import contextlib
import gzip
import socket
import threading
import time

import pytest

from optimas_jax.llm.attempts import Fault
from optimas_jax.llm.base import CompletionRequest, Message
from optimas_jax.llm.clients.anthropic import AnthropicCompleter
from optimas_jax.llm.clients.limits import limit_answers
from optimas_jax.llm.clients.openai import OpenAICompleter
from optimas_jax.llm.clients.remote import ServerConfig

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"


def drips():
    """A space now and then, for ever."""
    yield CHUNKED
    while True:
        yield b"1\r\n \r\n"
        time.sleep(0.05)


def floods():
    yield CHUNKED
    while True:
        yield b"100000\r\n" + b" " * 2**20 + b"\r\n"


def unpacks():
    """What is a thousand times as large when it is unpacked."""
    body = gzip.compress(b" " * 2**22, 1) * 100
    yield HEAD + f"content-encoding: gzip\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


@contextlib.contextmanager
def answering(parts):
    """The port of a server that answers every request with these parts."""

    def answer(connection):
        with connection, contextlib.suppress(OSError):
            connection.recv(2**16)
            for part in parts():
                connection.sendall(part)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(2**16):  # closed with unread bytes, a connection is reset and its last part lost
                pass

    def serve():
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("make", [OpenAICompleter, AnthropicCompleter])
@pytest.mark.parametrize(
    ("parts", "said"), [(drips, "does not end within"), (floods, "larger than"), (unpacks, "larger than")]
)
def test_an_answer_without_end_is_a_fault_of_its_request(parts, said, make, monkeypatch):
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.setenv(name, "sk-planted-key-of-a-test")
    provider = "openai" if make is OpenAICompleter else "anthropic"
    request = CompletionRequest(f"{provider}:m", (Message("user", "Where?"),), max_tokens=8)
    with answering(parts) as port:
        seconds = 0.5 if parts is drips else 30.0
        completer = make(ServerConfig(f"http://127.0.0.1:{port}", timeout=seconds))
        with pytest.raises(Fault, match=said) as raised:
            asyncio.run(completer.complete(request))
    assert raised.value.passes and raised.value.reached


def test_an_answer_within_the_limits_is_whole():
    import httpx2

    transport = httpx2.MockTransport(lambda request: httpx2.Response(200, content=b"{}" * 1000))
    with httpx2.Client(transport=transport, event_hooks={"response": [limit_answers(30.0)]}) as client:
        assert client.get("http://host").content == b"{}" * 1000


@pytest.mark.parametrize("make", [OpenAICompleter, AnthropicCompleter])
def test_no_request_is_sent_on_to_another_address(make, monkeypatch):
    """Its key would go along."""
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.setenv(name, "sk-planted-key-of-a-test")
    provider = "openai" if make is OpenAICompleter else "anthropic"
    asked = []

    def other():
        asked.append(True)
        yield HEAD + b"content-length: 2\r\n\r\n{}"

    with answering(other) as elsewhere:
        address = f"http://127.0.0.1:{elsewhere}/v1"

        def moved():
            yield f"HTTP/1.1 307 Moved\r\nlocation: {address}\r\ncontent-length: 0\r\n\r\n".encode()

        with answering(moved) as port:
            completer = make(ServerConfig(f"http://127.0.0.1:{port}", timeout=10.0))
            request = CompletionRequest(f"{provider}:m", (Message("user", "Where?"),), max_tokens=8)
            with pytest.raises(Fault, match=f"sends requests on to {address}: set config"):
                asyncio.run(completer.complete(request))
    assert not asked
