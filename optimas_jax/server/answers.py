"""OpenAI's wire format for chat and text completions: the fields of answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from optimas_jax.core.types import Outcome
from optimas_jax.llm.base import Completion

_FINISH = {Outcome.OK: "stop", Outcome.TRUNCATED: "length"}


class Piece(NamedTuple):
    """One token of an answer: its text, and its bytes, which may be part of a character."""

    text: str
    utf8: bytes


def usage(completions: Sequence[Completion], answers: int = 1) -> dict[str, int]:
    """Numbers of tokens of all completions of a request; each prompt has ``answers`` completions, and counts once."""
    prompt = sum(completion.prompt_tokens for completion in completions[::answers])
    answer = sum(completion.completion_tokens for completion in completions)
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def choice(completion: Completion, index: int, pieces: Sequence[Piece] | None, *, chat: bool) -> dict[str, Any]:
    """One entry of ``choices``; ``pieces`` are the answer's tokens, or None if no log-probs are wanted."""
    logprobs = None if pieces is None else _logprobs(completion, pieces, chat=chat)
    entry = {"index": index, "finish_reason": _FINISH[completion.outcome], "logprobs": logprobs}
    if not chat:
        return {**entry, "text": completion.text}
    return {**entry, "message": {"role": "assistant", "content": completion.text, "refusal": None}}


def token_ids(completion: Completion) -> dict[str, list[int]]:
    """Token ids of prompt and answer, for an entry of ``choices``."""
    assert completion.tokens is not None
    return {"prompt_token_ids": list(completion.tokens.prompt_ids), "token_ids": list(completion.tokens.ids)}


def chunk_choice(index: int, text: str | None, *, chat: bool, first: bool = False) -> dict[str, Any]:
    """One entry of ``choices`` in a part of a streamed answer."""
    entry: dict[str, Any] = {"index": index, "finish_reason": None, "logprobs": None}
    if not chat:
        return {**entry, "text": text or ""}
    role = {"role": "assistant"} if first else {}
    return {**entry, "delta": {**role, **({} if text is None else {"content": text})}}


def last_choice(completion: Completion, index: int, pieces: Sequence[Piece] | None, *, chat: bool) -> dict[str, Any]:
    """The last entry of ``choices`` of a streamed answer."""
    complete = choice(completion, index, pieces, chat=chat)
    entry = {name: complete[name] for name in ("index", "finish_reason", "logprobs")}
    return {**entry, "delta": {}} if chat else {**entry, "text": ""}


def _logprobs(completion: Completion, pieces: Sequence[Piece], *, chat: bool) -> dict[str, Any]:
    assert completion.tokens is not None
    values = [float(value) for value in completion.tokens.logprobs]
    if chat:
        content = [
            {"token": piece.text, "logprob": value, "bytes": list(piece.utf8), "top_logprobs": []}
            for piece, value in zip(pieces, values, strict=True)
        ]
        return {"content": content, "refusal": None}
    texts = [piece.text for piece in pieces]
    offsets = [sum(map(len, texts[:index])) for index in range(len(texts))]
    return {"tokens": texts, "token_logprobs": values, "top_logprobs": None, "text_offset": offsets}
