"""Any OpenAI-compatible server: ``launch/serve.py``, vLLM, llama.cpp and others.

A request for an adapter names it by its digest, so that the server can never answer with an older one: an adapter that
the server does not know yet is loaded under that name first (vLLM's ``load_lora_adapter``, which ``launch/serve.py``
has, too). Server and client must see the same folder of adapters.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optimas_jax.core.types import Outcome, StopRun
from optimas_jax.llm.base import Completion, CompletionRequest, Tokens
from optimas_jax.llm.limits import Retries, retry

PREFIX = "openai:"
KEY = "OPENAI_API_KEY"
_TRANSIENT = (408, 409, 429)  # and 5xx
_OUTCOMES = {"stop": Outcome.OK, "length": Outcome.TRUNCATED, "content_filter": Outcome.REFUSED}


@dataclasses.dataclass(frozen=True)
class ServerConfig:
    """A server that answers for models called ``openai:NAME``.

    Attributes:
      base_url: as OpenAI's clients want it, for example ``http://127.0.0.1:8000/v1``.
      timeout: seconds for one answer.
      connections: requests in flight, at most.
      retries: of what may pass: 408, 409, 429, 5xx, no connection.
    """

    base_url: str = ""
    timeout: float = 600.0
    connections: int = 64
    retries: Retries = Retries()


class ServerError(StopRun):
    """The server cannot answer, or does not understand."""


class OpenAICompleter:
    """Answers completion requests over the network. The client is made at the first request."""

    def __init__(self, config: ServerConfig, adapters: Path | None = None, http_client: Any = None):
        """``adapters``: the folder whose adapters requests may name. ``http_client``: an ``httpx2.Client`` to use."""
        if not config.base_url:
            raise ValueError("an OpenAI-compatible server needs an address: set config.server.base_url")
        self._config, self._adapters, self._http_client = config, adapters, http_client
        self._lock = threading.Lock()
        self._served: set[str] = set()
        self._client: Any = None
        # Threads, because every stage has an event loop of its own, and connections would belong to one of them.
        self._pool = concurrent.futures.ThreadPoolExecutor(config.connections, "openai")

    async def complete(self, request: CompletionRequest) -> Completion:
        """Answers one request.

        Raises:
          ServerError: for a request that the server refuses, for an answer that cannot be read, or if the server does
            not answer after all attempts.
        """
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._complete, request)

    def _complete(self, request: CompletionRequest) -> Completion:
        if request.adapter:
            self._load(request.adapter)
        start = time.perf_counter()
        try:
            answer = self._ask(request)
        except _Unknown as error:
            if not request.adapter:
                raise ServerError(str(error)) from error
            self._served.discard(request.adapter)  # the server started anew
            self._load(request.adapter)
            answer = self._ask(request)
        return _read(request, answer, time.perf_counter() - start)

    def _ask(self, request: CompletionRequest) -> Mapping[str, Any]:
        model = request.adapter or request.model.removeprefix(PREFIX)
        is_text = [message.role for message in request.messages] == ["text"]
        body: dict[str, Any] = {
            "model": model,
            "temperature": request.temperature,
            "top_p": request.top_p,
            **({"stop": list(request.stop)} if request.stop else {}),
            **({"seed": request.seed} if request.temperature > 0 else {}),
            **({"extra_body": {"return_token_ids": True}} if request.tokens else {}),
        }
        with self._lock:
            client = self._client = self._client or self._make_client()
        if is_text:
            body |= {"prompt": request.messages[0].content, "max_tokens": request.max_tokens}
            body |= {"logprobs": 0} if request.tokens else {}
            return self._call(lambda: client.completions.create(**body).to_dict())
        body["messages"] = [{"role": message.role, "content": message.content} for message in request.messages]
        body |= {"max_completion_tokens": request.max_tokens, **({"logprobs": True} if request.tokens else {})}
        return self._call(lambda: client.chat.completions.create(**body).to_dict())

    def _make_client(self) -> Any:
        try:
            import openai
        except ImportError as error:
            raise ServerError(f"models called {PREFIX}NAME need the package openai: pip install openai") from error
        return openai.OpenAI(
            base_url=self._config.base_url,
            api_key=os.environ.get(KEY) or "none",  # servers on this machine want none
            max_retries=0,
            timeout=self._config.timeout,
            http_client=self._http_client,
        )

    def _load(self, adapter: str) -> None:
        """Has the server load an adapter, once."""
        with self._lock:
            if adapter in self._served:
                return
            if self._adapters is None:
                raise ServerError(f"a request names the adapter {adapter!r}, and there is no folder of adapters")
            client = self._client = self._client or self._make_client()
            body = {"lora_name": adapter, "lora_path": str((self._adapters / adapter).resolve())}
            try:
                self._call(lambda: client.post("/load_lora_adapter", body=body, cast_to=str))
            except _Refused as error:
                if "already" not in str(error):
                    raise ServerError(f"the server cannot load the adapter {body['lora_path']}: {error}") from error
            self._served.add(adapter)

    def _call(self, call: Any) -> Any:
        """With retries; errors of the client become ours, which never show the key."""
        import openai

        try:
            return retry(call, _wait, self._config.retries)
        except openai.NotFoundError as error:
            raise _Unknown(_say(error)) from None
        except openai.BadRequestError as error:
            raise _Refused(_say(error)) from None
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise ServerError(f"{self._config.base_url} wants a key that it accepts in {KEY} ({_say(error)})") from None
        except openai.APIConnectionError as error:
            raise ServerError(
                f"{self._config.base_url} does not answer ({type(error).__name__}: {error.__cause__ or error}), "
                f"{self._config.retries.attempts} attempts. What it answered before is on the tape: start it and run "
                "the same command again"
            ) from None
        except openai.APIError as error:
            raise ServerError(f"{self._config.base_url} failed: {_say(error)}") from None


class _Refused(ServerError):
    """Status 400."""


class _Unknown(ServerError):
    """Status 404."""


def _wait(error: Exception) -> float | None:
    """How long to wait before asking again; None if that would not help."""
    import openai

    if isinstance(error, openai.APIConnectionError):
        return 0.0
    if not isinstance(error, openai.APIStatusError) or not (
        error.status_code in _TRANSIENT or error.status_code >= 500
    ):
        return None
    try:
        return float(error.response.headers.get("retry-after", 0.0))
    except ValueError:  # a date
        return 0.0


def _say(error: Exception) -> str:
    return str(getattr(error, "message", error))[:500]


def _read(request: CompletionRequest, answer: Mapping[str, Any], seconds: float) -> Completion:
    try:
        [choice] = answer["choices"]
        message = choice.get("message")
        text = choice["text"] if message is None else message.get("content") or ""
        refused = bool(message and message.get("refusal"))
        usage = answer.get("usage") or {}
        return Completion(
            text=message["refusal"] if message and refused else text,
            outcome=Outcome.REFUSED if refused else _OUTCOMES.get(choice["finish_reason"], Outcome.OK),
            prompt_tokens=int(usage.get("prompt_tokens") or 0),
            completion_tokens=int(usage.get("completion_tokens") or 0),
            seconds=seconds,
            tokens=_tokens(answer, choice) if request.tokens else None,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ServerError(
            f"the server's answer cannot be read ({type(error).__name__}: {error}): {str(answer)[:500]}"
        ) from error


def _tokens(answer: Mapping[str, Any], choice: Mapping[str, Any]) -> Tokens:
    """What was read and written, in tokens."""
    prompt_ids = choice.get("prompt_token_ids") or answer.get("prompt_token_ids")
    ids, logprobs = choice.get("token_ids"), choice.get("logprobs")
    if not prompt_ids or not ids or not logprobs:
        raise ServerError(
            "weights are tuned on what was sampled, token by token, and the server does not tell (return_token_ids and "
            "logprobs): launch/serve.py and vLLM do"
        )
    if "token_logprobs" in logprobs:
        values = logprobs["token_logprobs"]
    else:
        values = [token["logprob"] for token in logprobs["content"]]
    if len(values) != len(ids):
        raise ValueError(f"{len(ids)} tokens with {len(values)} log-probabilities")
    return Tokens(tuple(prompt_ids), tuple(ids), tuple(map(float, values)))
