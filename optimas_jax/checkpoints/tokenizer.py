"""Tokenizers: from a Hugging Face folder, from GGUF metadata, or bytes for random models; chat template included.

GGUF files are read without torch: vocabulary and merges become a ``tokenizers`` BPE model, wrapped so that all three
sources behave alike.

Special tokens (``<|im_end|>``) come only from the chat template. In an encoded text, such as a retrieved page or an
answer, the same characters are ordinary text: data cannot end a turn or begin another. Added tokens that a tokenizer
does not declare special (``<think>``) are matched everywhere.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from optimas_jax.checkpoints.sources import ModelSource, WeightsError
from optimas_jax.checkpoints.weights import open_gguf

_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_QWEN2_SPLIT = _LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")

_CONTROL, _USER_DEFINED = 3, 4  # token types of GGUF vocabularies

_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|endoftext|>", "<end_of_turn>")  # of an answer

_RANDOM_WORDS = (
    "yes no region country people capital currency question answer EUR USD XOF XAF Europe Asia Africa America "
    "million thousand square kilometres area code 1 2 3"
)
_RANDOM_MARKS = ("", ",", ".", ";", ":", "?", "!")
_RANDOM_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Text to ids and back.

    Attributes:
      backend: the Hugging Face tokenizer.
      eos_ids: ids that end an answer.
      pad_id: id that fills rows; never attended to.
    """

    backend: PreTrainedTokenizerFast
    eos_ids: tuple[int, ...]
    pad_id: int

    def encode(self, text: str) -> list[int]:
        """Ids of plain text, without added special tokens; special tokens in the text are encoded as characters."""
        return self.backend.backend_tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out."""
        return self.backend.backend_tokenizer.decode(list(ids), skip_special_tokens=True)

    def render_chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The filled-in chat template, up to the beginning of the assistant's answer. Raises ``ValueError`` for
        messages that the template refuses."""
        chat = [dict(message) for message in messages]
        try:
            text = self.backend.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # templates are programs, and refuse what they were not written for
            raise ValueError(f"the model's chat template does not take these messages: {error}") from error
        assert isinstance(text, str)
        return text

    @property
    def knows_tools(self) -> bool:
        """Whether the chat template has turns for the results of tools."""
        return bool(re.search(r"""['"]tool['"]""", str(self.backend.chat_template)))

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Ids of the filled-in chat template: special tokens of the template are single ids; special tokens in messages
        are text.

        Before the template is filled in, a guard (a character that no message has) is inserted into special tokens in
        messages; the special tokens that remain are the template's. Messages without special tokens are not changed,
        because templates may inspect them.
        """
        texts = "".join(value for message in messages for value in message.values())
        guard = next(char for char in map(chr, range(0xFDD0, 0x110000)) if char not in texts)  # noncharacters first
        special = "|".join(map(re.escape, self._special_ids)) or "(?!)"
        guarded = [{key: self._guarded(value, guard) for key, value in message.items()} for message in messages]
        pieces = re.split(f"((?:{special})(?!{guard}))", self.render_chat(guarded))
        ids = []
        for plain, token in zip(pieces[::2], [*pieces[1::2], None], strict=True):
            ids += self.encode(plain.replace(guard, ""))
            ids += [] if token is None else [self._special_ids[token]]
        return ids

    def _guarded(self, text: str, guard: str) -> str:
        """A text with a guard behind the first character of every special token in it, overlapping ones included."""
        for token in self._special_ids:
            parted = token[0] + guard + token[1:]
            while token in text and (broken := text.replace(token, parted)) != text:
                text = broken
                if len(token) == 1:
                    break
        return text

    @cached_property
    def _special_ids(self) -> dict[str, int]:
        """Special tokens and their ids, longest first, so that the longer of two with the same beginning matches."""
        added = self.backend.backend_tokenizer.get_added_tokens_decoder()
        special = {token.content: index for index, token in added.items() if token.special}
        return dict(sorted(special.items(), key=lambda item: -len(item[0])))

    @cached_property
    def token_texts(self) -> tuple[str, ...]:
        """[V] the text of each id alone, to find the ids that contain a stop text."""
        return tuple(self.decode([index]) for index in range(len(self.backend)))

    def ids_containing(self, text: str) -> np.ndarray:
        """[V] bool: ids whose text contains ``text``."""
        return np.fromiter((text in token for token in self.token_texts), bool, len(self.token_texts))

    def token_bytes(self, token: int) -> bytes:
        """UTF-8 of an id's text; for a part of a character, a part of its bytes. Empty for special tokens."""
        text = self.decode([token])
        if "\ufffd" not in text:
            return text.encode()
        word = self.backend.backend_tokenizer.id_to_token(token) or ""
        if (byte := re.fullmatch("<0x([0-9A-F]{2})>", word)) is not None:  # as SentencePiece has them
            return bytes.fromhex(byte[1])
        bytes_of = _byte_level()
        return bytes(bytes_of[char] for char in word) if set(word) <= set(bytes_of) else text.encode()

    def check_fits(self, vocab_size: int, where: str) -> None:
        """Checks that a model with ``vocab_size`` tokens knows all tokens that texts may have, and all that end an
        answer. It need not know tokens for images and sounds: text models of a family share its tokenizer.

        Raises:
          WeightsError: the model does not know some of the tokens, which it names.
        """
        named = self.backend.special_tokens_map.items()
        unread = {str(token) for name, token in named if re.fullmatch(r"(image|video|audio|boi|eoi)_token", name)}
        beyond = {token: index for token, index in self.backend.get_vocab().items() if index >= vocab_size}
        beyond |= {f"id {index}": index for index in (*self.eos_ids, self.pad_id) if index >= vocab_size}
        beyond = {token: index for token, index in beyond.items() if token not in unread}
        if beyond:
            first = min(beyond, key=lambda token: beyond[token])
            raise WeightsError(
                f"{where}: the tokenizer has {len(beyond)} tokens more than the model's embedding, which ends at id "
                f"{vocab_size - 1}; the first is {first[:80]!r}, {beyond[first]}. Resize the embedding "
                "(resize_token_embeddings), or take the model's own tokenizer"
            )


def load_tokenizer(source: ModelSource, vocab_size: int | None = None) -> Tokenizer:
    """The tokenizer that belongs to a model.

    Args:
      vocab_size: of the model, which must know all tokens; None for a tokenizer alone.

    Raises:
      WeightsError: if the source has no readable tokenizer, the tokenizer has no chat template, or has tokens that the
        model does not know.
    """
    tokenizer = _load(source)
    if vocab_size is not None:
        tokenizer.check_fits(vocab_size, source.spec)
    return tokenizer


def _load(source: ModelSource) -> Tokenizer:
    if source.kind == "random":
        return _random_tokenizer()
    assert source.path is not None
    if source.kind == "gguf":
        metadata = open_gguf(source.path).metadata
        return tokenizer_from_gguf(metadata)
    if not (source.path / "tokenizer.json").is_file():
        raise WeightsError(f"{source.path} has no tokenizer.json (slow tokenizers are not read)")
    try:
        backend = PreTrainedTokenizerFast.from_pretrained(str(source.path))
        generation = source.path / "generation_config.json"
        eos = json.loads(generation.read_text("utf-8")).get("eos_token_id") if generation.is_file() else None
    except Exception as error:  # the reader in Rust raises bare exceptions
        raise WeightsError(
            f"{source.path}: the tokenizer could not be read ({type(error).__name__}: {error})"
        ) from error
    return _finish(backend, eos if isinstance(eos, list) else [eos], where=str(source.path))


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """Builds a byte-level BPE tokenizer from GGUF metadata (``tokenizer.ggml.*``)."""
    kind, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if kind != "gpt2" or pre not in _PRE_TOKENIZERS:
        raise WeightsError(
            f"GGUF tokenizer {kind!r} with pre-tokenizer {pre!r} is not known; byte-level BPE ('gpt2') is, with "
            f"{', '.join(sorted(_PRE_TOKENIZERS))}. Load the model from a Hugging Face folder instead"
        )
    missing = [name for name in ("tokens", "token_type", "merges") if f"tokenizer.ggml.{name}" not in metadata]
    if missing:
        raise WeightsError(f"GGUF metadata lacks {', '.join(f'tokenizer.ggml.{name}' for name in missing)}")
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    try:
        # Llama 3 looks up whole words before it merges.
        bpe = models.BPE({token: index for index, token in enumerate(tokens)}, merges, ignore_merges=pre == "llama-bpe")
    except Exception as error:  # the constructor in Rust raises bare exceptions
        raise WeightsError(f"GGUF vocabulary and merges do not fit together: {error}") from error
    backend = tokenizers.Tokenizer(bpe)
    backend.pre_tokenizer = _PRE_TOKENIZERS[pre]()
    backend.decoder = decoders.ByteLevel()
    # No normalizer, as in llama.cpp and transformers: GGUF has no field for it, although Qwen's own tokenizer composes
    # characters first (NFC).
    for special, number in ((True, _CONTROL), (False, _USER_DEFINED)):
        chosen = [token for token, kind in zip(tokens, types, strict=True) if kind == number]
        added = [AddedToken(token, special=special, normalized=False) for token in chosen]
        backend.add_special_tokens(added) if special else backend.add_tokens(added)

    def token(name: str) -> str | None:
        index = metadata.get(f"tokenizer.ggml.{name}_token_id")
        return None if index is None else tokens[index]

    return _finish(
        PreTrainedTokenizerFast(
            tokenizer_object=backend,
            bos_token=token("bos"),
            eos_token=token("eos"),
            pad_token=token("padding"),
            chat_template=metadata.get("tokenizer.chat_template"),
        ),
        [metadata.get("tokenizer.ggml.eot_token_id"), metadata.get("tokenizer.ggml.eom_token_id")],
        where="GGUF file",
    )


def _split_then_bytes(*patterns: pre_tokenizers.PreTokenizer) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([*patterns, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _regex(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated")


def _smollm() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )


_PRE_TOKENIZERS = {
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    "smollm": _smollm,
    "llama-bpe": lambda: _split_then_bytes(_regex(_LLAMA3_SPLIT)),
    "qwen2": lambda: _split_then_bytes(_regex(_QWEN2_SPLIT)),
}


@cache
def _byte_level() -> dict[str, int]:
    """Byte of each character of a byte-level vocabulary. Printable bytes are written as their own characters, the
    others, in order, as characters from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


def _random_tokenizer() -> Tokenizer:
    """Bytes and a few dozen words, so that answers of a random model have different scores."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {char: index for index, char in enumerate(alphabet)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    spellings = [spell(word) for word in _RANDOM_WORDS.split() for spell in (str, str.lower, str.title, str.upper)]
    words = [f" {word}{mark}" for mark in _RANDOM_MARKS for word in dict.fromkeys(spellings)]
    backend.add_tokens([AddedToken(word, normalized=False) for word in words])
    backend.add_special_tokens([AddedToken("<|end|>", special=True), AddedToken("<|pad|>", special=True)])
    special = {"eos_token": "<|end|>", "pad_token": "<|pad|>"}
    return _finish(
        PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=_RANDOM_TEMPLATE, **special),
        where="random model",
    )


def _finish(backend: PreTrainedTokenizerFast, eos_ids: Sequence[int | None] = (), *, where: str) -> Tokenizer:
    """Checks the required parts of a tokenizer, and makes it encode special tokens in texts as characters.

    Args:
      eos_ids: further ids that end an answer.
    """
    if backend.chat_template is None:
        raise WeightsError(f"{where} has no chat template: use an instruction-tuned model")
    if backend.eos_token_id is None:
        raise WeightsError(f"{where} names no end-of-sequence token")
    fast = backend.backend_tokenizer
    fast.encode_special_tokens = True  # as characters
    named = [fast.token_to_id(name) for name in _ENDS]
    ends = [index for index in [backend.eos_token_id, *eos_ids, *named] if index is not None]
    pad = backend.pad_token_id
    return Tokenizer(backend, tuple(dict.fromkeys(ends)), pad if isinstance(pad, int) else ends[0])
