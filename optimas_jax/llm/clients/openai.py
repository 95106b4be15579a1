"""OpenAI, and any OpenAI-compatible server: ``launch/serve.py``, vLLM, llama.cpp and others.

Chat messages go to chat completions; a plain text goes to completions, which OpenAI no longer has for its current
models. A schema is sent as ``response_format``: OpenAI then enforces its subset of JSON Schema, other servers more of
it.

A request names an adapter by its digest, so that the server never answers with an older one. An adapter that the server
does not know is loaded first (``load_lora_adapter`` of vLLM and of ``launch/serve.py``). Server and client must see the
same folder of adapters.
"""

from __future__ import annotations

import re
import threading
import urllib.parse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from optimas_jax.core.text.json_text import parse_json
from optimas_jax.core.types import Outcome, thaw
from optimas_jax.llm.accounts.prices import Price
from optimas_jax.llm.attempts import ServerError
from optimas_jax.llm.base import Completion, CompletionRequest, Message, Tokens
from optimas_jax.llm.clients.errors import Refused, Unknown, Unreadable, tokens_used
from optimas_jax.llm.clients.remote import Body, Remote, ServerConfig, address, settled
from optimas_jax.llm.forms.schemas import is_closed, subschemas
from optimas_jax.llm.specs import model_name

URL = "https://api.openai.com/v1"
_ANSWER = "answer"  # name of the schema
_STRICT = re.compile(  # keywords that OpenAI's strict mode knows
    r"type|properties|required|additionalProperties|items|anyOf|\$ref|\$defs|enum|const|description|pattern|format|"
    r"multipleOf|(exclusiveM|m)(in|ax)imum|(min|max)Items"
)
_LIMITS = ("max_tokens", "max_completion_tokens")  # names of the limit of an answer; most servers know the first
_REASONING = ("reasoning_content", "reasoning")  # of a message, as servers separate it
_OUTCOMES = {"stop": Outcome.OK, "length": Outcome.TRUNCATED, "content_filter": Outcome.REFUSED}


class OpenAICompleter:
    """Answers completion requests over the network. The client is made at the first request."""

    def __init__(
        self,
        config: ServerConfig,
        adapters: Path | None = None,
        *,
        prices: Mapping[str, Price] | None = None,
        say: Callable[[str], None] = lambda text: None,
        http_client: Any = None,
    ):
        """``adapters``: the folder whose adapters requests may name. ``prices``, ``say``: see ``Remote``.
        ``http_client``: an ``httpx2.Client`` to use."""
        is_openai = address("openai", URL, config).startswith(URL.removesuffix("/v1"))
        limits = _LIMITS[::-1] if is_openai else _LIMITS  # OpenAI's own models want the newer name
        self._remote = Remote("openai", URL, config, prices or {}, say, limits)
        self._adapters, self._http_client = adapters, http_client
        self._lock = threading.Lock()
        self._served: set[str] = set()

    async def complete(self, request: CompletionRequest) -> Completion:
        """Attempts one request.

        Raises:
          Fault: there is no answer that can be read.
          ServerError: the server would answer no request.
        """
        return await self._remote.complete(request, lambda: self._complete(request))

    def _complete(self, request: CompletionRequest) -> Completion:
        if request.adapter:
            self._load(request.adapter)
        try:
            return self._ask(request)
        except Unknown as error:
            if not request.adapter:
                text = [message.role for message in request.messages] == ["text"]
                hint = "; a chat model is asked with language_model.style = chat" if text else ""
                if not urllib.parse.urlsplit(self._remote.url).path.strip("/"):
                    hint += "; most addresses end in /v1"
                raise Unknown(f"{error} (asked for {request.model!r}){hint}", error.server) from None
        self._served.discard(request.adapter)  # the server started anew
        self._load(request.adapter)
        return self._ask(request)

    def _ask(self, request: CompletionRequest) -> Completion:
        def read() -> Completion:
            return _read(*self._remote.post(_sdk(), request, self._body, self._send(request)))

        return self._remote.call(_sdk(), read)

    def _send(self, request: CompletionRequest) -> Callable[[Body], Any]:
        """The function that sends the body of a request."""
        client = self._remote.client(_sdk(), _sdk().OpenAI, self._http_client)
        is_text = [message.role for message in request.messages] == ["text"]
        completions = client.completions if is_text else client.chat.completions
        # Fields that are no arguments of the SDK; its completions of plain texts have no ``response_format``.
        more = ("return_token_ids", "response_format") if is_text else ("return_token_ids",)

        def send(sent: Body) -> Any:
            extra = {name: sent[name] for name in more if name in sent}
            named = {name: value for name, value in sent.items() if name not in extra}
            return completions.with_raw_response.create(**named, extra_body=extra or None)

        return send

    def _body(self, request: CompletionRequest) -> Body:
        body: Body = {
            "model": request.adapter or model_name(request.model),
            "temperature": request.temperature,
            **({"top_p": request.top_p} if request.top_p < 1 else {}),
            **({"stop": list(request.stop)} if request.stop else {}),
            **({"seed": request.seed} if request.temperature > 0 else {}),
            **({"return_token_ids": True} if request.tokens else {}),
            **_form(request),
        }
        if [message.role for message in request.messages] == ["text"]:
            if request.messages[0].images:
                raise ServerError(f"{request.model} is asked to continue a text, which has no images: set style = chat")
            body |= {"prompt": request.messages[0].content, "max_tokens": request.max_tokens}
            return body | ({"logprobs": 0} if request.tokens else {})
        body["messages"] = [_turn(message) for message in request.messages]
        return body | {self._remote.limit: request.max_tokens, **({"logprobs": True} if request.tokens else {})}

    def _load(self, adapter: str) -> None:
        """Makes the server load an adapter, once."""
        client = self._remote.client(_sdk(), _sdk().OpenAI, self._http_client)
        with self._lock:
            if adapter in self._served:
                return
            if self._adapters is None:
                raise ServerError(f"a request names the adapter {adapter!r}, and there is no folder of adapters")
            body = {"lora_name": adapter, "lora_path": str((self._adapters / adapter).resolve())}
            try:
                self._remote.call(_sdk(), lambda: client.post("/load_lora_adapter", body=body, cast_to=str))
            except Refused as error:
                if "already" not in str(error):
                    raise ServerError(f"the server cannot load the adapter {body['lora_path']}: {error}") from None
            except Unknown as error:
                if "adapter" in str(error).replace("load_lora_adapter", ""):  # it looked for the folder
                    raise ServerError(
                        f"the server cannot load the adapter {body['lora_path']}: {error}; it must see this folder "
                        "under the same path"
                    ) from None
                raise ServerError(
                    f"the server does not load adapters ({error}): start vLLM with --enable-lora and "
                    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, or use launch/serve.py"
                ) from None
            self._served.add(adapter)


def _sdk() -> Any:
    import openai

    return openai


def _turn(message: Message) -> Body:
    """A message of the API."""
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.written}}
        for call in message.calls
    ]
    return {
        "role": message.role,
        "content": _content(message) or ("" if not calls else None),
        **({"name": message.name} if message.name else {}),
        **({"tool_calls": calls} if calls else {}),
        **({"tool_call_id": message.call_id} if message.role == "tool" else {}),
    }


def _content(message: Message) -> Any:
    """A text, or parts: the text and the images in it."""
    if not message.images:
        return message.content
    images = [{"type": "image_url", "image_url": {"url": url}} for url in message.images]
    return [{"type": "text", "text": message.content}, *images]


def _form(request: CompletionRequest) -> Body:
    """Fields of the body that ask for a form of the answer."""
    if request.tools:
        tools = [{"type": "function", "function": thaw(vars(tool))} for tool in request.tools]
        named = {"type": "function", "function": {"name": request.choice}}
        choice = request.choice if request.choice in ("none", "required") else named
        return {
            "tools": tools,
            **({} if request.choice == "auto" else {"tool_choice": choice}),
            **({} if request.text_schema is None else _format(request.text_schema)),
        }
    return {} if request.schema is None else _format(request.schema)


def _format(text_schema: Mapping[str, Any]) -> Body:
    """Fields of the body that ask for an answer of a schema."""
    schema = thaw(text_schema)
    strict = is_closed(schema) and all(_STRICT.fullmatch(key) for subschema in subschemas(schema) for key in subschema)
    named = {"name": _ANSWER, "schema": schema, "strict": strict}
    return {"response_format": {"type": "json_schema", "json_schema": named}}


def _read(request: CompletionRequest, answer: Mapping[str, Any]) -> Completion:
    """The completion in an answer.

    Raises:
      Unreadable: the answer is not of the API's schema.
      ServerError: another model than the adapter answered.
    """
    _check_model(request, answer)
    try:
        choice = answer["choices"][0]
        message = choice.get("message")
        reasoning, text = _text(choice["text"] if message is None else message.get("content"))
        refusal = _text(message and message.get("refusal"))[1]
        calls = [call["function"] for call in (message or {}).get("tool_calls") or ()]
        reasoning_fields = [_text((message or {}).get(name))[1] for name in _REASONING]
        usage = answer["usage"] if isinstance(answer.get("usage"), dict) else {}
        prompt_tokens, completion_tokens, estimated = tokens_used(
            [usage.get("prompt_tokens")], usage.get("completion_tokens"), request.most()
        )
        completion = Completion(
            text=refusal or text,
            outcome=Outcome.REFUSED if refusal else _outcome(choice.get("finish_reason")),
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            tokens=_tokens(answer, choice) if request.tokens else None,
            reasoning="\n".join(filter(None, (*reasoning_fields, reasoning))),
            estimated=estimated,
        )
        return settled(request, completion, [(call["name"], _decoded(call.get("arguments"))) for call in calls])
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise Unreadable(f"{type(error).__name__}: {error}; {str(answer)[:4000]}") from error


def _text(content: Any) -> tuple[str, str]:
    """(reasoning, text) of a content: a text, parts, or nothing. Raises ``TypeError`` for anything else."""
    if content is None or isinstance(content, str):
        return "", content or ""
    if not isinstance(content, list):
        raise TypeError(f"content is {type(content).__name__}")
    texts: dict[bool, list[str]] = {True: [], False: []}
    for part in content:
        kind, text = (part["type"], part.get("text", "")) if isinstance(part, dict) else ("text", part)
        if not isinstance(text, str):
            raise TypeError(f"a part of the content is {type(text).__name__}")
        texts[kind in ("reasoning", "thinking")].append(text)
    return "".join(texts[True]), "".join(texts[False])


def _outcome(finish_reason: Any) -> Outcome:
    return _OUTCOMES.get(finish_reason, Outcome.OK) if isinstance(finish_reason, str) else Outcome.OK


def _check_model(request: CompletionRequest, answer: Mapping[str, Any]) -> None:
    """Raises ``ServerError`` for an answer of another model than the adapter that was asked for: a proxy may know only
    the base model. Answers that name no model are checked by their log-probs (``policy.served``)."""
    name = answer.get("model")
    if request.adapter and isinstance(name, str) and name and request.adapter not in name:
        raise ServerError(
            f"asked for the adapter {request.adapter}, and the answer is of the model {name[:200]!r}: see that what is "
            "between here and the server hands on the model's name"
        )


def _decoded(arguments: str | None) -> Any:
    """Arguments of a tool; {} for an empty text or None, which some servers write for no arguments. A text that is no
    JSON is returned as it is: the reader of the reply refuses it."""
    try:
        return parse_json(arguments or "{}")
    except (TypeError, ValueError):  # some servers send them as an object
        return arguments


def _tokens(answer: Mapping[str, Any], choice: Mapping[str, Any]) -> Tokens:
    """Tokens of the prompt and of the answer."""
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
