"""The host side of sampling: requests in, texts out; buckets and batches in between.

What a request gets does not depend on which requests share its batch: the shapes that it is computed with follow from
its own length and token limit alone. Prompts are padded to their own length bucket and prefilled in micro-batches of a
fixed size per bucket; decode rows are padded to their own cache bucket; and the number of decode rows is one of
``_ROWS``, between which XLA's CPU code gives every row the same bits (below 8 rows it orders reductions differently,
above 32 matrix products; a test holds this). The buckets also bound the number of compilations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from optimas_jax.models.backbone import Cache
from optimas_jax.models.config import BackboneConfig
from optimas_jax.models.lora import Params
from optimas_jax.models.sampling import decode, insert, prefill
from optimas_jax.models.tokenizer import Tokenizer
from optimas_jax.parallel.mesh import DATA
from optimas_jax.parallel.sharding import place_rows

_ROWS = (8, 16, 32)
_PREFILL_TOKENS = 512  # tokens of one prefill micro-batch
_NEW_TOKEN_BUCKETS = (32, 128, 512, 2048)
_CACHE_TOKENS = 16 * 1024  # rows x slots of one decode batch: bounds the memory of the cache


@dataclasses.dataclass(frozen=True)
class SampleRequest:
    """One prompt to continue.

    Attributes:
      prompt_ids: the prompt.
      max_tokens: most tokens to sample, at least 1.
      temperature: 0 takes the most likely token.
      top_p: sample from the smallest set of most likely tokens with at least this much probability.
      seed: names this request's random stream; not used at temperature 0.
      stop: texts that end the answer once it has begun (white space before it does not count); it is cut before them.
    """

    prompt_ids: tuple[int, ...]
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Sample:
    """What was sampled.

    Attributes:
      ids: sampled tokens, the one that ended the answer included.
      logprobs: log-probability of each under the model itself (temperature 1, no top-p).
      text: the answer, without white space before it and end-of-sequence token, cut before the first stop text.
      finish: ``stop`` or ``length``.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finish: Literal["stop", "length"]


class ContextOverflow(ValueError):
    """A prompt that does not fit into the model's context together with the answer."""


def length_bucket(length: int) -> int:
    """Smallest bucket that holds ``length`` tokens: steps of 16 up to 128, of 32 up to 512, then 8 per doubling."""
    if length <= 32:
        return 32
    step = 16 if length <= 128 else 32 if length <= 512 else 1 << (length - 1).bit_length() - 4
    return -(-length // step) * step


def cache_bucket(length: int) -> int:
    """Prompt slots of a decode cache: 64, 128, 192, 256, 384, 512, 768, 1024 and so on."""
    if length <= 256:
        return -(-length // 64) * 64
    step = 1 << (length - 1).bit_length() - 2
    return -(-length // step) * step


@dataclasses.dataclass(frozen=True)
class Sampler:
    """The host side of sampling: buckets, batches, and text.

    Attributes:
      graphdef: from ``backbone.make_graph`` without LoRA (adapters are merged into ``params``).
      params: frozen weights.
      config: sizes of the backbone.
      tokenizer: for stop texts and answers.
      mesh: where ``params`` live; rows are cut along its ``data`` axis. None for one device.
    """

    graphdef: Any
    params: Params
    config: BackboneConfig
    tokenizer: Tokenizer
    mesh: Mesh | None = None

    def check(self, request: SampleRequest) -> None:
        """Raises ``ContextOverflow`` or ``ValueError`` for a request that cannot be served."""
        if not request.prompt_ids or request.max_tokens < 1 or not 0 < request.top_p <= 1 or request.temperature < 0:
            raise ValueError(
                "a request needs a prompt, max_tokens >= 1, 0 < top_p <= 1 and temperature >= 0; got "
                f"{len(request.prompt_ids)} prompt tokens, max_tokens {request.max_tokens}, top_p {request.top_p}, "
                f"temperature {request.temperature}"
            )
        total = len(request.prompt_ids) + request.max_tokens
        if total > self.config.max_positions:
            raise ContextOverflow(
                f"prompt of {len(request.prompt_ids)} tokens and answer of up to {request.max_tokens} exceed the "
                f"model's context of {self.config.max_positions} tokens: shorten the prompt (fewer demonstrations, "
                "fewer retrieved documents) or choose a model with a longer context"
            )

    def bucket(self, request: SampleRequest) -> tuple[int, int]:
        """(prompt slots, slots for new tokens) of the decode batch that serves a request."""
        new_tokens = next((n for n in _NEW_TOKEN_BUCKETS if n >= request.max_tokens), request.max_tokens)
        return cache_bucket(len(request.prompt_ids)), new_tokens

    def max_rows(self, bucket: tuple[int, int]) -> int:
        """Most requests of one bucket that are decoded together."""
        return max(rows for rows in _ROWS if rows == _ROWS[0] or rows * sum(bucket) <= _CACHE_TOKENS)

    def generate(self, requests: Sequence[SampleRequest]) -> list[Sample]:
        """Samples for all requests, in their order."""
        by_bucket: dict[tuple[int, int], list[int]] = {}
        for index, request in enumerate(requests):
            self.check(request)
            by_bucket.setdefault(self.bucket(request), []).append(index)
        samples: list[Sample | None] = [None] * len(requests)
        for bucket, indices in by_bucket.items():
            size = self.max_rows(bucket)
            for start in range(0, len(indices), size):
                batch = indices[start : start + size]
                for index, sample in zip(
                    batch, self._generate_batch([requests[i] for i in batch], *bucket), strict=True
                ):
                    samples[index] = sample
        return [sample for sample in samples if sample is not None]

    def _generate_batch(self, requests: Sequence[SampleRequest], prompt_slots: int, new_tokens: int) -> list[Sample]:
        rows = next(size for size in _ROWS if size >= len(requests)) * self._row_factor
        cache, logits = self._prefill(requests, rows, prompt_slots + new_tokens)

        def column(values: Sequence[Any], fill: Any, dtype: Any) -> np.ndarray:
            return np.asarray([*values, *[fill] * (rows - len(requests))], dtype)

        arrays = {
            "blank": self._blank_ids,
            "lengths": column([len(r.prompt_ids) for r in requests], 1, np.int32),
            "limits": column([r.max_tokens for r in requests], 0, np.int32),
            "seeds": column([r.seed % 2**32 for r in requests], 0, np.uint32),
            "temperatures": column([r.temperature for r in requests], 0.0, np.float32),
            "top_p": column([r.top_p for r in requests], 1.0, np.float32),
            "stops": np.stack(
                [self._stop_ids(r.stop) for r in requests] + [self._stop_ids(())] * (rows - len(requests))
            ),
        }
        placed = place_rows(arrays, self.mesh, [name for name in arrays if name != "blank"])
        out, _ = decode(self.graphdef, self.params, cache, {**placed, "logits": logits}, prompt_slots)
        out = jax.device_get(out)
        return [
            self._sample(request, out["tokens"][row, : out["counts"][row]], out["logprobs"][row])
            for row, request in enumerate(requests)
        ]

    @property
    def _row_factor(self) -> int:
        """Rows are multiplied by this on meshes too wide to divide 8 rows."""
        return 1 if self.mesh is None else -(-self.mesh.shape[DATA] // _ROWS[0])

    def _prefill(self, requests: Sequence[SampleRequest], rows: int, slots: int) -> tuple[Cache, jax.Array]:
        """Prefills prompts by length bucket, in micro-batches whose shape depends on the bucket alone."""
        heads, size, dtype = self.config.num_kv_heads, self.config.head_dim, self.params["embed"].dtype
        cache = tuple(
            (jnp.zeros((rows, heads, size, slots), dtype), jnp.zeros((rows, heads, slots, size), dtype))
            for _ in range(self.config.num_layers)
        )
        state = (cache, jnp.zeros((rows, self.config.vocab_size), jnp.float32))
        by_length: dict[int, list[int]] = {}
        for row, request in enumerate(requests):
            by_length.setdefault(length_bucket(len(request.prompt_ids)), []).append(row)
        for length, members in sorted(by_length.items()):
            # A power of two, so that full decode batches leave no row of a micro-batch empty.
            count = 1 << max(1, _PREFILL_TOKENS // length).bit_length() - 1
            count *= 1 if self.mesh is None else self.mesh.shape[DATA]
            for start in range(0, len(members), count):
                batch = members[start : start + count]
                arrays = {
                    "input_ids": np.full((count, length), self.tokenizer.pad_id, np.int32),
                    "lengths": np.ones((count,), np.int32),
                    "rows": np.full((count,), rows, np.int32),
                }
                for place, row in enumerate(batch):
                    prompt = requests[row].prompt_ids
                    arrays["input_ids"][place, : len(prompt)] = prompt
                    arrays["lengths"][place], arrays["rows"][place] = len(prompt), row
                placed = place_rows(arrays, self.mesh, ("input_ids", "lengths"))
                logits, kv = prefill(self.graphdef, self.params, placed["input_ids"], placed["lengths"])
                state = insert(state, logits, kv, placed["rows"])
        return state

    @cached_property
    def _blank_ids(self) -> np.ndarray:
        """[V] bool: tokens of white space."""
        blank = np.zeros((self.config.vocab_size,), bool)
        texts = self.tokenizer.token_texts
        blank[: len(texts)] = [text.isspace() for text in texts]
        return blank

    @cached_property
    def _stop_tables(self) -> dict[tuple[str, ...], np.ndarray]:
        return {}

    def _stop_ids(self, stop: tuple[str, ...]) -> np.ndarray:
        """[V] int8: 2 for end-of-sequence tokens, 1 for tokens whose text contains a stop text, else 0."""
        if stop not in self._stop_tables:
            ids = np.zeros((self.config.vocab_size,), np.int8)
            for text in stop:
                containing = self.tokenizer.ids_containing(text)
                ids[: len(containing)] |= containing
            ids[list(self.tokenizer.eos_ids)] = 2
            self._stop_tables[stop] = ids
        return self._stop_tables[stop]

    def _sample(self, request: SampleRequest, tokens: np.ndarray, logprobs: np.ndarray) -> Sample:
        ids = [int(token) for token in tokens]
        ended = ids[-1] in self.tokenizer.eos_ids
        text = self.tokenizer.decode(ids[:-1] if ended else ids).lstrip()
        cuts = [text.find(stop) for stop in request.stop if stop in text]
        if cuts:
            text = text[: min(cuts)]
        finish: Literal["stop", "length"] = "stop" if ended or cuts else "length"
        return Sample(tuple(ids), tuple(float(p) for p in logprobs[: len(ids)]), text, finish)
