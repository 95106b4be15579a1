"""The parts that all clients of model servers share: threads, rate limits, prices, and settings that servers refuse.

Both SDKs return raw responses of the same shape. A client builds the body of a request and reads the body of an answer;
everything between is here. One call is one attempt: ``llm.attempts`` decides what follows a fault.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import functools
import os
import re
import secrets
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

from optimas_jax.core.schema import NonNegativeInt, PositiveFloat
from optimas_jax.core.text.secrets import key_problem, redact
from optimas_jax.core.types import Outcome, digest
from optimas_jax.llm.accounts.prices import Price, price_of
from optimas_jax.llm.attempts import Retries, Server, ServerError
from optimas_jax.llm.base import Completion, CompletionRequest
from optimas_jax.llm.clients.errors import Refused, fault_of, read_json
from optimas_jax.llm.clients.limits import Rate, limit_answers
from optimas_jax.llm.forms.reasoning import separate
from optimas_jax.llm.forms.schemas import told, whole_reply
from optimas_jax.llm.specs import KEYS

T = TypeVar("T")
Body = dict[str, Any]

ORIGIN = "x-optimas-origin"  # header of requests
_ADDRESSES = {"openai": "OPENAI_BASE_URL", "anthropic": "ANTHROPIC_BASE_URL"}  # variables that their SDKs read
_OPTIONAL = ("temperature", "top_p", "seed", "stop")  # reasoning models take only some of them
# Fields that ask for a form of the answer, and the words of refusals that name them. Answers are checked in any case.
_FORMS = {
    "response_format": re.compile(r"response_format|json_schema|guided|grammar", re.IGNORECASE),
    "tools": re.compile(r"\btools?\b|tool_choice|tool[ _]use|function.?call|schema for function", re.IGNORECASE),
    "output_config": re.compile(r"output_(config|format)|json_schema|structured output", re.IGNORECASE),
}
_THIS_ONE = re.compile(r"invalid schema|schema is invalid", re.IGNORECASE)
_KEY = re.compile(r"\b(sk|pk|key|token)-\w{8,}")
_OWN = "the model's own holds"
_UNSUPPORTED = re.compile(r"unsupported|not support|deprecated|unrecognized", re.IGNORECASE)
_MOST_THREADS = 4096  # each takes some 50 kB, and there are only as many as requests in flight


@dataclasses.dataclass(frozen=True)
class ServerConfig:
    """The server of a provider's models, and its limits.

    Attributes:
      base_url: address in the form of the provider's client, for example ``http://127.0.0.1:8000/v1`` for
        ``openai:NAME``; "" for the provider itself.
      timeout: longest time for one answer, in seconds.
      connections: largest number of requests in flight; 0 for as many as ``config.concurrency`` allows.
      requests_per_minute: largest number of requests of each model in a minute; 0 for no limit.
      tokens_per_minute: largest number of tokens of each model in a minute; 0 for no limit.
      retries: repeated attempts after passing faults: status 408, 409, 429 or 5xx, no connection, an unreadable
        answer.
    """

    base_url: str = ""
    timeout: PositiveFloat = 600.0
    connections: NonNegativeInt = 0
    requests_per_minute: NonNegativeInt = 0
    tokens_per_minute: NonNegativeInt = 0
    retries: Retries = Retries()

    def __post_init__(self) -> None:
        if self.base_url and (problem := address_problem(self.base_url)):
            raise ValueError(f"base_url {problem}")


def address_problem(text: str) -> str:
    """Why a text cannot be the address of a server; "" if it can. The result quotes no secret."""
    expected = "expected http://HOST[:PORT]/PATH or https://..."
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:  # its message is left out: it quotes parts of the address
        return f"is no address: {expected}"
    unwanted = {
        "a name or a password": "@" in text,
        "a query": url.query,
        "a fragment": url.fragment,
        "a key": _KEY.search(text) or redact(text) != text,
    }
    for content, is_present in unwanted.items():
        if is_present:
            return (
                f"for {redact(url.hostname or 'a server')} holds {content}, which would be written to the run folder: "
                f"keys come from {' or '.join(KEYS.values())}"
            )
    if url.scheme not in ("http", "https") or not url.hostname or port == 0:
        return f"is {text!r}, {expected}"
    return ""


def address(provider: str, default: str, config: ServerConfig) -> str:
    """The address of a provider's server: the configuration's, else the environment's, else the provider's own."""
    return config.base_url or os.environ.get(_ADDRESSES[provider]) or default


@functools.cache
def origin() -> str:
    """The mark of this process, which it sends along (``ORIGIN``) to every address but a provider's own. So its own
    proxy knows its requests (``bridges.door``)."""
    return secrets.token_hex(8)


os.register_at_fork(after_in_child=origin.cache_clear)  # the child has no proxy


class Remote:
    """Client of one provider, or of a server with its API. Safe for use from several threads and event loops.

    Attributes:
      config: address and limits of the server.
      url: its address.
      server: its state, as its answers show it.
    """

    def __init__(
        self,
        provider: str,
        url: str,
        config: ServerConfig,
        prices: Mapping[str, Price],
        say: Callable[[str], None],
        limits: Sequence[str] = ("max_tokens",),
    ):
        """Args:
        url: of the provider, used if neither the configuration nor the environment has another.
        prices: of ``config.prices``.
        say: callback for messages to the user.
        limits: names under which servers know the limit of an answer; the first one is tried first.
        """
        self.config, self.server = config, Server(config.retries, say)
        self.url = address(provider, url, config)
        self._marks = {} if self.url.rstrip("/") == url else {ORIGIN: origin()}
        self._provider, self._prices, self._say = provider, prices, say
        self._lock = threading.Lock()
        self._rates: dict[str, tuple[Rate, Rate]] = {}
        self._left_out: dict[str, frozenset[tuple[str, str]]] = {}  # model -> settings, and digests of one value or ""
        self._limits, self._ignores_limit = tuple(limits), False
        self._warned: set[str] = set()
        # Threads: connections of an asynchronous client would belong to one event loop, and callers may have several.
        self._pool = concurrent.futures.ThreadPoolExecutor(config.connections or _MOST_THREADS, provider)
        self._own = threading.local()

    @property
    def key(self) -> str:
        """The key from the environment, without white space around it; a server at ``base_url`` may need none."""
        key = os.environ.get(KEYS[self._provider], "").strip()
        if problem := address_problem(self.url):
            raise ServerError(f"the address in {_ADDRESSES[self._provider]} {problem}")
        if not key and not self.config.base_url:
            raise ServerError(f"set {KEYS[self._provider]} to your key for {self.url}: the tape lacks an answer")
        if problem := key_problem(key):
            raise ServerError(f"the key in {KEYS[self._provider]} cannot be sent: {problem}")
        return key or "none"

    def client(self, sdk: Any, make: Callable[..., Any], http_client: Any) -> Any:
        """The SDK's client of this thread, built by ``make`` at its first call. It does not retry; it is closed with
        ``self``.

        Each thread has a connection of its own: a shared client would search all connections for every request.

        Args:
          sdk: the package ``openai`` or ``anthropic``.
          http_client: to use for all threads, or None.
        """
        client = getattr(self._own, "client", None)
        if client is None:
            client = self._own.client = make(
                base_url=self.url,
                api_key=self.key,
                max_retries=0,
                timeout=self.config.timeout,
                default_headers=self._marks,
                http_client=http_client
                or sdk.DefaultHttpxClient(
                    verify=self._certificates,
                    follow_redirects=False,  # to another host the key of Anthropic would go along
                    event_hooks={"response": [limit_answers(self.config.timeout)]},
                ),
            )
            weakref.finalize(self, client.close)
        return client

    @functools.cached_property
    def _certificates(self) -> ssl.SSLContext:
        """Certificates, read once for all clients: reading them takes as long as some requests."""
        import httpx2

        return httpx2.create_ssl_context()

    async def complete(self, request: CompletionRequest, ask: Callable[[], Completion]) -> Completion:
        """Attempts a request in a thread, within the rate limits; adds seconds and dollars.

        A request that is cancelled before it was sent is not sent. A request in flight is paid for in any case:
        cancelling waits for its answer and returns it, so that the caller can record it.
        """
        cancelled = threading.Event()
        submitted = self._pool.submit(self._complete, request, ask, cancelled)
        answer = asyncio.wrap_future(submitted)  # once: a second wrapper's exception would have no reader
        answer.add_done_callback(lambda done: done.cancelled() or done.exception())  # marked as retrieved
        try:
            await asyncio.wait([answer])
        except asyncio.CancelledError:
            cancelled.set()
            if submitted.cancel():
                raise
            await asyncio.wait([answer])
        return answer.result()

    def _complete(
        self, request: CompletionRequest, ask: Callable[[], Completion], cancelled: threading.Event
    ) -> Completion:
        with self._lock:
            if request.model not in self._rates:
                self._rates[request.model] = Rate(self.config.requests_per_minute), Rate(self.config.tokens_per_minute)
            requests, tokens = self._rates[request.model]
        most = request.most().tokens
        if cancelled.wait(max(requests.take(1), tokens.take(most))):
            raise ServerError("the request was cancelled")
        started = time.perf_counter()
        completion = ask()
        self.server.note(request)
        tokens.take(completion.usage.tokens - most)
        self._check_answer(request, completion)
        price = price_of(request.model, self._prices)
        return dataclasses.replace(
            completion,
            seconds=time.perf_counter() - started,
            usd=price.usd(completion.prompt_tokens, completion.completion_tokens) if price else 0.0,
        )

    def _check_answer(self, request: CompletionRequest, completion: Completion) -> None:
        """Warns of a server whose answers have no usage, are longer than asked for, or quote a key."""
        if redact(completion.text) != completion.text:
            self._warn(
                f"an answer of {request.model} quotes a key of this environment: it is on the tape as it is, and "
                "masked elsewhere"
            )
        if completion.estimated:
            self._warn(
                f"{request.model} does not say what an answer used: each is booked at its worst case, its prompt in "
                "bytes and max_tokens"
            )
        if completion.completion_tokens > request.max_tokens and not self._ignores_limit:
            self._ignores_limit = True
            ignored, *others = self._limits
            self._limits = (*others, ignored)
            self._say(
                f"{request.model} wrote {completion.completion_tokens} tokens where {ignored} was {request.max_tokens}"
                + f": it is asked with {others[0]} from now on" * bool(others)
            )

    @property
    def limit(self) -> str:
        """The name under which the server takes the limit of an answer."""
        return self._limits[0]

    def _warn(self, text: str) -> None:
        """Reports a text to the user, once."""
        with self._lock:
            new = text not in self._warned
            self._warned.add(text)
        if new:
            self._say(text)

    def post(
        self,
        sdk: Any,
        request: CompletionRequest,
        make_body: Callable[[CompletionRequest], Body],
        send: Callable[[Body], Any],
    ) -> tuple[CompletionRequest, Mapping[str, Any]]:
        """Sends the body of a request; returns the request as it was sent and the body of the answer. To a model that
        takes no tools, or not these, they are described in the messages (``forms.schemas.told``).

        A sampling setting or a form of the answer that the model refuses is left out of this and of later requests,
        with a message.

        Args:
          sdk: the package ``openai`` or ``anthropic``.
          make_body: makes the body of a request.
          send: sends a body, and returns the raw response.

        Raises:
          Fault, ServerError: see ``errors.fault_of``.
        """
        tried: set[str] = set()  # names of the limit that were sent
        while True:
            asked, body = request, make_body(request)
            model = body["model"]
            left_out = self._left_out.get(model, frozenset())
            if "tools" in body and left_out & {("tools", ""), _this("tools", body["tools"])}:
                asked = told(request)
                body = make_body(asked)
            sent = {name: value for name, value in body.items() if not left_out & {(name, ""), _this(name, value)}}
            tried |= {*self._limits} & {*sent}
            try:
                return asked, self.call(sdk, lambda: read_json(send(sent).http_response.content))  # noqa: B023 (called now)
            except Refused as error:
                name = _unsupported(error, sent, self._limits)
                if name is None or (name in self._limits and {*self._limits} == tried):
                    raise
                self._leave_out(name, model, sent, str(error))

    def _leave_out(self, name: str, model: str, sent: Body, message: str) -> None:
        """Leaves a setting out of later requests; for the limit of an answer, the other name is used."""
        if name in self._limits:
            self._limits = (*(other for other in self._limits if other != name), name)
            return
        setting = _this(name, sent[name]) if _THIS_ONE.search(message) else (name, "")
        with self._lock:
            left_out = self._left_out.get(model, frozenset())
            self._left_out[model] = left_out | {setting}
        if setting not in left_out:
            kind, consequence = ("form", "answers are checked here") if name in _FORMS else ("setting", _OWN)
            self._say(f"{model} does not take the {kind} {name}: it is left out, and {consequence}")

    def call(self, sdk: Any, call: Callable[[], T]) -> T:
        """One call of the SDK; raises ``Fault`` or ``ServerError`` for its errors."""
        try:
            return call()
        except Exception as error:
            fault = fault_of(sdk, error, self._provider, self.url, self.server)
            if fault is error:
                raise
            raise fault from None


def _this(name: str, value: Any) -> tuple[str, str]:
    """The entry of ``Remote._left_out`` for one value of a setting."""
    return (name, digest(value)) if name in _FORMS else (name, "")


def _unsupported(error: Refused, body: Mapping[str, Any], limits: Sequence[str]) -> str | None:
    """The setting or the form of an answer that an error refuses; None if it refuses something else."""
    message = str(error)
    for name, words in _FORMS.items():
        if name in body and words.search(message):
            return name
    if not _UNSUPPORTED.search(message):
        return None
    named = [name for name in (*_OPTIONAL, *limits) if name in body and re.search(rf"\b{name}\b", message)]
    return named[0] if named else None


def settled(request: CompletionRequest, completion: Completion, calls: Sequence[tuple[str, Any]]) -> Completion:
    """An answer of an API without reasoning in its text, up to the first stop text, and with its calls of tools as
    JSON. Where tools were offered it is JSON even without calls: its text is text, also if it quotes a call."""
    completion = _cut(separate(request, completion), request.stop)
    offered = bool(request.tools) and request.choice != "none" and completion.outcome in (Outcome.OK, Outcome.TRUNCATED)
    if not calls and not (offered and completion.text):
        return completion
    return dataclasses.replace(completion, text=whole_reply(completion.text, calls))


def _cut(completion: Completion, stops: tuple[str, ...]) -> Completion:
    """The answer without leading white space, up to the first stop text: servers may not take all stop texts."""
    text = completion.text.lstrip()  # as the local engine's answers
    places = [text.find(stop) for stop in stops if stop in text]
    if not places or completion.outcome not in (Outcome.OK, Outcome.TRUNCATED):
        return dataclasses.replace(completion, text=text)
    return dataclasses.replace(completion, text=text[: min(places)], outcome=Outcome.OK)
