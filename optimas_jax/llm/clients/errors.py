"""Meaning of the errors of a provider's SDK: a fault of one request (``llm.attempts.Fault``), or the end of a run.

The SDKs of both providers come from one generator, and raise errors of the same names.
"""

from __future__ import annotations

import email.utils
import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from optimas_jax.core.text.secrets import redacted
from optimas_jax.core.types import Outcome, valid_text
from optimas_jax.core.usage import Usage
from optimas_jax.llm.attempts import Fault, Server, ServerError
from optimas_jax.llm.specs import KEYS

SETTINGS = {"openai": "config.server", "anthropic": "config.anthropic"}  # provider -> its ServerConfig
_TRANSIENT = (408, 409, 425, 429)  # and 5xx
_NOT_BEGUN = (429, 501, 503, 529)  # no model has worked on the request
_MOST_QUOTED = 500  # characters of a server's message that are quoted
_OVERFLOW = re.compile(
    r"context.?(length|window|size|limit)|(prompt|input) is too long|maximum (context|input|number of tokens)|"
    r"too many (input )?tokens|exceeds? the (available )?context",
    re.IGNORECASE,
)
_POLICY = re.compile(r"content.?(filter|policy|management)|flagged|moderation|safety", re.IGNORECASE)
_UNPAID = ("insufficient_quota", "billing_hard_limit_reached")
AGAIN = "What it answered before is on the tape: run the same command again"


class Refused(Fault):
    """A request that the server refuses: status 400."""


class Unknown(Fault):
    """A model or a path that the server does not know: status 404."""


class Unreadable(Exception):
    """An answer that is not of the API's schema; the message says what is wrong."""


def fault_of(sdk: Any, error: Any, provider: str, url: str, server: Server) -> Exception:
    """What to raise for an error of an attempt: a ``Fault``, a ``ServerError`` that stops the run, or the error
    itself, if it is no server's.

    Args:
      sdk: the package ``openai`` or ``anthropic``.
    """
    attempts, setting = server.retries.attempts, SETTINGS[provider]
    server_text = valid_text(redacted(str(getattr(error, "message", error)), _MOST_QUOTED))
    if isinstance(error, Unreadable):
        return Fault(
            f"{url} answers what cannot be read ({server_text}), {attempts} attempts. {AGAIN}",
            server,
            outcome=Outcome.PARSE_ERROR,
            passes=True,
            reached=True,
        )
    if isinstance(error, sdk.APIConnectionError):
        return _of_connection(error, url, server)
    if not isinstance(error, sdk.APIStatusError):
        return ServerError(f"{url} failed: {server_text}. {AGAIN}") if isinstance(error, sdk.APIError) else error
    status, key = error.status_code, KEYS[provider]
    if 300 <= status < 400:
        address = redacted(error.response.headers.get("location", "an unknown address"), _MOST_QUOTED)
        message = f"{url} sends requests on to {address}: set {setting}.base_url to where they are answered"
        return Fault(message, server)
    if status == 401:  # the server's message is left out: it quotes parts of the key
        return ServerError(f"{url} wants a key that it accepts in {key}")
    if status == 402 or getattr(error, "code", None) in _UNPAID:
        return ServerError(f"{url} wants to be paid ({server_text}). {AGAIN}")
    if status == 429:
        return Fault(
            f"{url} refuses for its limits ({server_text}), {attempts} attempts: set {setting}.requests_per_minute, "
            f"{setting}.tokens_per_minute or a lower config.concurrency. {AGAIN}",
            server,
            outcome=Outcome.RATE_LIMITED,
            passes=True,
            retry_after=retry_after(error.response.headers),
        )
    if (status in _TRANSIENT or status >= 500) and error.response.headers.get("x-should-retry") != "false":
        return Fault(
            f"{url} failed with status {status} ({server_text}), {attempts} attempts. {AGAIN}",
            server,
            outcome=Outcome.CRASHED,
            passes=True,
            reached=status not in _NOT_BEGUN,
            retry_after=retry_after(error.response.headers),
        )
    return _of_request(status, server_text, url, key, server)


def _of_request(status: int, server_text: str, url: str, key: str, server: Server) -> Fault:
    """The fault of a request that the server will refuse again."""
    if status == 404:
        return Unknown(f"{url}: {server_text}", server)
    if status == 403:
        breaks_policy = bool(_POLICY.search(server_text))
        return Fault(f"{url} denies what the key in {key} asks for ({server_text})", server, own=breaks_policy)
    shorter = "; shorten prompts (fewer demonstrations or passages) or lower max_tokens"
    too_long = status == 413 or bool(_OVERFLOW.search(server_text))
    kind = Refused if status == 400 else Fault
    return kind(f"{url}: {server_text}{shorter * too_long}", server, own=too_long or bool(_POLICY.search(server_text)))


def _of_connection(error: Exception, url: str, server: Server) -> Fault:
    """The fault of a connection that failed, or that ended before the whole answer was there."""
    cause = error.__cause__ or error.__context__ or error
    slow = "Timeout" in type(error).__name__ and "Connect" not in type(cause).__name__
    named = redacted(f"{type(error).__name__}: {error.__cause__ or error}", _MOST_QUOTED)
    return Fault(
        f"{url} does not answer ({named}), {server.retries.attempts} attempts. {AGAIN}",
        server,
        outcome=Outcome.TIMEOUT if slow else Outcome.CRASHED,
        passes=True,
        reached=not re.match(r"Connect|Pool|UnsupportedProtocol", type(cause).__name__),
    )


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that a server asks to wait: Retry-After in seconds or as a date; 0 if it does not say."""
    text = headers.get("retry-after", "")
    try:
        seconds = float(text)
    except ValueError:
        date = email.utils.parsedate_tz(text)
        try:
            seconds = email.utils.mktime_tz(date) - time.time() if date else 0.0
        except (ValueError, OverflowError):  # not a valid date
            return 0.0
    return 0.0 if math.isnan(seconds) else max(0.0, seconds)


def read_json(content: bytes) -> Mapping[str, Any]:
    """The object in the body of an answer.

    Raises:
      Unreadable: for anything else, and for an error that came as an answer.
    """
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        start = redacted(content[: 4 * _MOST_QUOTED].decode("utf-8", "replace"), 200)
        raise Unreadable(f"it is not JSON: {start!r}") from None
    if not isinstance(answer, dict):
        raise Unreadable(f"it is {type(answer).__name__}, not an object")
    if answer.get("error") and "choices" not in answer and "content" not in answer:
        raise Unreadable(f"an error with status 200: {redacted(str(answer['error']), 300)}")
    return answer


def tokens_used(read: Sequence[Any], written: Any, most: Usage) -> tuple[int, int, bool]:
    """Tokens that an answer used: (prompt, completion, False); or, if the server does not report them, the most that it
    can have used, and True.

    Args:
      read: reported numbers that add up to the tokens of the prompt.
      written: reported number of tokens of the answer.
      most: worst case of the request.
    """
    counts = [*read, written]
    if not all(
        isinstance(count, int | float) and not isinstance(count, bool) and 0 <= count < 1e12 for count in counts
    ):
        return most.prompt_tokens, most.completion_tokens, True
    return sum(map(int, read)), int(written), False
