"""The parts that all clients of model servers share: threads, rate limits, retries, prices, and error messages.

Both SDKs come from one generator: they raise errors of the same names and return raw responses of the same shape. A
client builds the body of a request and reads the body of an answer; everything between is here.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import email.utils
import functools
import json
import os
import re
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import urlsplit

from optimas_jax.core.schema import NonNegativeInt, PositiveFloat
from optimas_jax.core.types import Outcome, StopRun, digest
from optimas_jax.llm.base import Completion, CompletionRequest
from optimas_jax.llm.clients.limits import Rate, Retries, retry
from optimas_jax.llm.prices import Price, price_of
from optimas_jax.llm.specs import KEYS

T = TypeVar("T")
Body = dict[str, Any]
Pause = Callable[[float], None]  # waits some seconds, and raises if the request is no longer wanted

SETTINGS = {"openai": "config.server", "anthropic": "config.anthropic"}  # provider -> its ServerConfig
_ADDRESSES = {"openai": "OPENAI_BASE_URL", "anthropic": "ANTHROPIC_BASE_URL"}  # variables that their SDKs read
_TRANSIENT = (408, 409, 429)  # and 5xx
_OPTIONAL = ("temperature", "top_p", "seed", "stop")  # models that think take only some of them
# What asks for a form of the answer, with the words that a refusal names it by. Answers are checked in any case.
_FORMS = {
    "response_format": re.compile(r"response_format|json_schema|guided|grammar", re.IGNORECASE),
    "tools": re.compile(r"\btools?\b|tool_choice|tool[ _]use|function.?call|schema for function", re.IGNORECASE),
    "output_config": re.compile(r"output_(config|format)|json_schema|structured output", re.IGNORECASE),
}
_THIS_ONE = re.compile(r"invalid schema|schema is invalid", re.IGNORECASE)
_OWN = "the model's own holds"
_UNSUPPORTED = re.compile(r"unsupported|not support|deprecated|unrecognized", re.IGNORECASE)
_MOST_THREADS = 4096  # each takes some 50 kB, and there are only as many as requests in flight
_OVERFLOW = re.compile(r"context.?length|context.?window|context limit|prompt is too long", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class ServerConfig:
    """The server of a provider's models, and its limits.

    Attributes:
      base_url: as the provider's client wants it, for example ``http://127.0.0.1:8000/v1`` for ``openai:NAME``; empty
        for the provider itself.
      timeout: seconds for one answer.
      connections: requests in flight, at most; 0 for all that ``config.concurrency`` lets through.
      requests_per_minute, tokens_per_minute: of each model, at most; 0 for no limit.
      retries: of transient errors: 408, 409, 429, 5xx, no connection, an answer that is not JSON.
    """

    base_url: str = ""
    timeout: PositiveFloat = 600.0
    connections: NonNegativeInt = 0
    requests_per_minute: NonNegativeInt = 0
    tokens_per_minute: NonNegativeInt = 0
    retries: Retries = Retries()

    def __post_init__(self) -> None:
        url = urlsplit(self.base_url)
        if self.base_url and (url.scheme not in ("http", "https") or not url.hostname):
            raise ValueError(f"base_url is {self.base_url!r}, expected http://HOST[:PORT]/PATH or https://...")
        if url.username or url.password:
            raise ValueError(
                f"base_url for {url.hostname} holds a name or a password, which would be written to the run folder: "
                f"keys come from {' or '.join(KEYS.values())}"
            )


class ServerError(StopRun):
    """The server does not answer, or refuses the request."""


class Refused(ServerError):
    """Status 400."""


class Unknown(ServerError):
    """Status 404."""


class _NotJson(Exception):
    pass


class Remote:
    """Client of one provider, or of a server with its API. Safe for use from several threads and event loops."""

    def __init__(self, provider: str, url: str, config: ServerConfig, prices: Mapping[str, Price], say: Callable):
        """Args:
        url: of the provider, where neither the configuration nor the environment has another.
        prices: of ``config.prices``.
        say: callback for messages to the user.
        """
        self.config = config
        self.url = config.base_url or os.environ.get(_ADDRESSES[provider]) or url
        self._provider, self._prices, self._say = provider, prices, say
        self._lock = threading.Lock()
        self._rates: dict[str, tuple[Rate, Rate]] = {}
        self._left_out: dict[str, frozenset[tuple[str, str]]] = {}  # model -> settings, and digests of one value or ""
        # Threads: connections of an asynchronous client would belong to one event loop, and callers may have several.
        self._pool = concurrent.futures.ThreadPoolExecutor(config.connections or _MOST_THREADS, provider)
        self._own = threading.local()

    @property
    def key(self) -> str:
        """The key from the environment; a server at ``base_url`` may need none."""
        key = os.environ.get(KEYS[self._provider], "")
        if not key and not self.config.base_url:
            raise ServerError(f"set {KEYS[self._provider]} to your key for {self.url}: the tape lacks an answer")
        return key or "none"

    def client(self, sdk: Any, make: Callable[..., Any], http_client: Any) -> Any:
        """The SDK's client of this thread, built by ``make`` at its first call. It does not retry; it is closed with
        ``self``.

        Each thread has a connection of its own: a client that all share looks at every connection for every request.

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
                http_client=http_client or sdk.DefaultHttpxClient(verify=self._certificates),
            )
            weakref.finalize(self, client.close)
        return client

    @functools.cached_property
    def _certificates(self) -> ssl.SSLContext:
        """For all clients: to read them takes as long as some requests."""
        import httpx2

        return httpx2.create_ssl_context()

    async def complete(self, request: CompletionRequest, ask: Callable[[Pause], Completion]) -> Completion:
        """Answers a request in a thread, within the rate limits; adds seconds and dollars.

        A request that is cancelled before it was sent is not sent. A request in flight is paid for in any case:
        cancelling waits for its answer and returns it, so that the caller can record it.
        """
        cancelled = threading.Event()

        def pause(seconds: float) -> None:
            if cancelled.wait(seconds):
                raise ServerError("the request was cancelled")

        submitted = self._pool.submit(self._complete, request, ask, pause)
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

    def _complete(self, request: CompletionRequest, ask: Callable[[Pause], Completion], pause: Pause) -> Completion:
        with self._lock:
            if request.model not in self._rates:
                self._rates[request.model] = Rate(self.config.requests_per_minute), Rate(self.config.tokens_per_minute)
            requests, tokens = self._rates[request.model]
        most = request.most().tokens
        pause(max(requests.take(1), tokens.take(most)))
        started = time.perf_counter()
        completion = ask(pause)
        tokens.take(completion.usage.tokens - most)
        price = price_of(request.model, self._prices)
        return dataclasses.replace(
            _cut(completion, request.stop),
            seconds=time.perf_counter() - started,
            usd=price.usd(completion.prompt_tokens, completion.completion_tokens) if price else 0.0,
        )

    def post(
        self, sdk: Any, body: Body, send: Callable[[Body], Any], pause: Pause, without_tools: Body | None = None
    ) -> Mapping[str, Any]:
        """Sends the body of a request and returns the body of the answer.

        A sampling setting that the model refuses is left out of this and of later requests, with a message, and so is
        the form of an answer.

        Args:
          sdk: the package ``openai`` or ``anthropic``.
          send: sends a body, and returns the raw response.
          without_tools: the body where the model takes no tools, or not these.
        """
        model = body["model"]
        while True:
            left_out = self._left_out.get(model, frozenset())
            if without_tools and "tools" in body and left_out & {("tools", ""), _this("tools", body["tools"])}:
                body = without_tools
            sent = {name: value for name, value in body.items() if not left_out & {(name, ""), _this(name, value)}}
            try:
                return self.call(sdk, lambda: _json(send(sent)), pause)  # noqa: B023 (called before the next round)
            except Refused as error:
                name = _unsupported(error, sent)
                if name is None:
                    raise
                setting = _this(name, sent[name]) if _THIS_ONE.search(str(error)) else (name, "")
                with self._lock:
                    known = self._left_out.get(model, frozenset())
                    self._left_out[model] = known | {setting}
                if setting not in known:
                    kind, rest = ("form", "answers are checked here") if name in _FORMS else ("setting", _OWN)
                    self._say(f"{model} does not take the {kind} {name}: it is left out, and {rest}")

    def call(self, sdk: Any, call: Callable[[], T], pause: Pause = time.sleep) -> T:
        """Calls with retries; raises ``ServerError`` for errors of the SDK."""
        setting, attempts = SETTINGS[self._provider], self.config.retries.attempts
        again = "What it answered before is on the tape: run the same command again"
        try:
            pause(0.0)
            return retry(call, lambda error: _wait(sdk, error), self.config.retries, pause)
        except sdk.NotFoundError as error:
            raise Unknown(f"{self.url}: {self._quote(error)}") from None
        except sdk.BadRequestError as error:
            said = self._quote(error)
            shorter = "; shorten prompts (fewer demonstrations or passages) or lower max_tokens"
            raise Refused(f"{self.url}: {said}{shorter if _OVERFLOW.search(said) else ''}") from None
        except sdk.AuthenticationError:  # whose message quotes parts of the key
            raise ServerError(f"{self.url} wants a key that it accepts in {KEYS[self._provider]}") from None
        except sdk.PermissionDeniedError as error:
            raise ServerError(
                f"{self.url} denies what the key in {KEYS[self._provider]} asks for ({self._quote(error)})"
            ) from None
        except sdk.RateLimitError as error:
            raise ServerError(
                f"{self.url} refuses for its limits ({self._quote(error)}), {attempts} attempts: set "
                f"{setting}.requests_per_minute, {setting}.tokens_per_minute or a lower config.concurrency. {again}"
            ) from None
        except sdk.APIConnectionError as error:
            cause = self._redact(f"{type(error).__name__}: {error.__cause__ or error}")
            raise ServerError(f"{self.url} does not answer ({cause}), {attempts} attempts. {again}") from None
        except _NotJson as error:
            raise ServerError(
                f"{self.url} answers what is not JSON ({self._redact(str(error))}), {attempts} attempts. {again}"
            ) from None
        except sdk.APIError as error:
            raise ServerError(f"{self.url} failed: {self._quote(error)}. {again}") from None

    def _quote(self, error: Exception) -> str:
        return self._redact(str(getattr(error, "message", error))[:500])

    def _redact(self, text: str) -> str:
        key = os.environ.get(KEYS[self._provider])
        return text.replace(key, "***") if key else text


def _json(response: Any) -> Mapping[str, Any]:
    try:
        return json.loads(response.http_response.content)
    except ValueError:
        raise _NotJson(repr(response.http_response.text[:200])) from None


def _wait(sdk: Any, error: Any) -> float | None:
    """Seconds to wait before the next attempt; None if the error is final."""
    if isinstance(error, _NotJson | sdk.APIConnectionError):
        return 0.0
    if not isinstance(error, sdk.APIStatusError):
        return None
    if getattr(error, "code", None) == "insufficient_quota" or error.response.headers.get("x-should-retry") == "false":
        return None
    if error.status_code not in _TRANSIENT and error.status_code < 500:
        return None
    return _retry_after(error.response.headers)


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that a server asks to wait: Retry-After in seconds or as a date; 0 if it does not say."""
    text = headers.get("retry-after", "")
    try:
        return float(text)
    except ValueError:
        date = email.utils.parsedate_tz(text)
        return max(0.0, email.utils.mktime_tz(date) - time.time()) if date else 0.0


def _this(name: str, value: Any) -> tuple[str, str]:
    """One value of a setting."""
    return (name, digest(value)) if name in _FORMS else (name, "")


def _unsupported(error: Refused, body: Mapping[str, Any]) -> str | None:
    """The setting that a server refuses whatever its value, or the form of an answer that it refuses; or None."""
    said = str(error)
    for name, words in _FORMS.items():
        if name in body and words.search(said):
            return name
    named = [name for name in _OPTIONAL if name in body and re.search(rf"\b{name}\b", said)]
    return named[0] if named and _UNSUPPORTED.search(said) else None


def _cut(completion: Completion, stops: tuple[str, ...]) -> Completion:
    """The answer without white space before it, up to the first stop text, for servers that take none or not this
    one."""
    text = completion.text.lstrip()  # as the local engine's answers
    places = [text.find(stop) for stop in stops if stop in text]
    if not places or completion.outcome not in (Outcome.OK, Outcome.TRUNCATED):
        return dataclasses.replace(completion, text=text)
    return dataclasses.replace(completion, text=text[: min(places)], outcome=Outcome.OK)
