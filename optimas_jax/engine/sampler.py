"""The host side of sampling: turns requests into texts.

The answer to a request depends neither on the other requests of its batch nor on when it joined the batch
(``engine.batching``, ``models.flat``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np

from optimas_jax.checkpoints.tokenizer import Tokenizer
from optimas_jax.engine.batching import ContinuousBatch
from optimas_jax.engine.constrain import Constrainer
from optimas_jax.engine.decode_batch import DecodeBatch, RowRequest
from optimas_jax.engine.multi_lora import AdapterStore
from optimas_jax.engine.prefill import Prefiller
from optimas_jax.engine.prefix_cache import PrefixCache
from optimas_jax.engine.shared import SharedBatch
from optimas_jax.engine.stop_texts import StopTexts, answer_text, certain, crossing, cut
from optimas_jax.models.backbone import Network
from optimas_jax.models.lora import Params
from optimas_jax.parallel.lanes import Lanes
from optimas_jax.parallel.lockstep import Shared, open_shared, together
from optimas_jax.parallel.platform import return_free_memory

_TABLES = 64  # most cached tables of stop texts, [V] bytes each


@dataclasses.dataclass(frozen=True)
class SampleRequest:
    """One prompt to continue.

    Attributes:
      prompt_ids: the prompt.
      max_tokens: most tokens to sample, at least 1.
      temperature: 0 takes the most likely token.
      top_p: sample from the smallest set of most likely tokens with at least this much probability.
      seed: of this request's random stream; not used at temperature 0.
      stop: texts that end the answer once it has begun (leading white space does not count); it is cut before them.
      adapter: name of the adapter that answers, "" for the base.
      schema: JSON Schema, as text, that the answer keeps to; "" for any answer. A stop text cuts it in any case.
    """

    prompt_ids: tuple[int, ...]
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    adapter: str = ""
    schema: str = ""


@dataclasses.dataclass(frozen=True)
class Sample:
    """A sampled answer.

    Attributes:
      ids: sampled tokens, the token that ended the answer included.
      logprobs: log-probability of each token under the model itself (temperature 1, no top-p).
      text: the answer without leading white space and end-of-sequence token, cut before the first stop text.
      finish: ``stop`` or ``length``.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finish: Literal["stop", "length"]


class ContextOverflow(ValueError):
    """A prompt that does not fit into the model's context together with the answer."""


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A model to sample from.

    Attributes:
      network: of the base, without adapters.
      params: frozen weights.
      tokenizer: for stop texts and answers.
      shared: see ``parallel.lockstep``.
    """

    network: Network
    params: Params
    tokenizer: Tokenizer
    shared: Shared | None = None

    def check(self, request: SampleRequest) -> None:
        """Raises ``ContextOverflow`` or ``ValueError`` for a request that cannot be served."""
        if not request.prompt_ids or request.max_tokens < 1 or not 0 < request.top_p <= 1 or request.temperature < 0:
            raise ValueError(
                "a request needs a prompt, max_tokens >= 1, 0 < top_p <= 1 and temperature >= 0; got "
                f"{len(request.prompt_ids)} prompt tokens, max_tokens {request.max_tokens}, top_p {request.top_p}, "
                f"temperature {request.temperature}"
            )
        self.adapters.get(request.adapter)
        total = len(request.prompt_ids) + request.max_tokens
        if total > self.network.config.max_positions:
            raise ContextOverflow(
                f"prompt of {len(request.prompt_ids)} tokens and answer of up to {request.max_tokens} exceed the "
                f"model's context of {self.network.config.max_positions} tokens: shorten the prompt (fewer "
                "demonstrations, fewer retrieved documents) or choose a model with a longer context"
            )

    def generate(self, requests: Sequence[SampleRequest]) -> list[Sample]:
        """Samples for all requests, in their order."""
        for request in requests:
            self.check(request)
        batch, samples = self.batch(), {}
        waiting = [(index, self.row_request(request)) for index, request in enumerate(requests)]
        while len(samples) < len(requests):
            admitted = set(batch.admit(waiting))
            waiting = [entry for entry in waiting if entry[0] not in admitted]
            for index, tokens, logprobs in batch.step():
                samples[index] = self.sample(requests[index], tokens, logprobs)
        return [samples[index] for index in range(len(requests))]

    def batch(self) -> ContinuousBatch[Any] | SharedBatch[Any]:
        """An empty batch; all batches of a sampler share its prefix cache. With several processes all of them hold the
        batch, one batch at a time."""
        if self.shared is None:
            return self.own_batch()
        leader, name = self.shared.leader, self.shared.name
        return open_shared(leader, f"batch of {name}", "batch", (name,), self.shared_batch)

    def own_batch(self) -> ContinuousBatch[Any]:
        """An empty batch of this process alone."""
        return ContinuousBatch(
            self._lanes,
            self._prefiller,
            lambda: DecodeBatch(self.network, self.params, self._prefiller, self._blank_ids),
        )

    def shared_batch(self, shared: Shared | None = None) -> SharedBatch[Any]:
        """An empty batch that all processes hold, by request number."""
        return SharedBatch(self.own_batch(), self.row_request, shared)

    def rest(self) -> None:
        """Returns free memory to the system; to be called when the engine becomes idle."""
        return_free_memory()

    @together
    def forget_prompts(self) -> None:
        """Empties the prefix cache. This affects speed alone."""
        self._prefiller.prefixes.clear()

    def row_request(self, request: SampleRequest) -> RowRequest:
        """A request in the form of a batch; raises ``SchemaError`` for a schema that cannot be enforced."""
        across = crossing(request.stop)
        return RowRequest(
            request.prompt_ids,
            request.max_tokens,
            request.temperature,
            request.top_p,
            request.seed,
            self._stop_ids(request.stop),
            self.adapters.get(request.adapter),
            StopTexts(across, self.tokenizer) if across else None,
            self._constrainer.start(request.schema, request.max_tokens) if request.schema else None,
            request,
        )

    @cached_property
    def _constrainer(self) -> Constrainer:
        return Constrainer(self.tokenizer, self.network.config.vocab_size)

    @cached_property
    def adapters(self) -> AdapterStore:
        """The adapters that requests can name."""
        return AdapterStore(self.network.config, self.network.mesh, self.shared and self.shared.part("adapters"))

    @cached_property
    def _lanes(self) -> Lanes:
        return Lanes.of(self.network.compute, self.network.mesh)

    @cached_property
    def _prefiller(self) -> Prefiller:
        compute = self.network.compute
        prefixes = PrefixCache(self.network.config, compute.dtype, compute.prefix_tokens, self.network.mesh)
        return Prefiller(
            self.network,
            self.params,
            self.tokenizer.pad_id,
            self._lanes,
            compute.prefill_tokens,
            prefixes,
            self.adapters,
        )

    @cached_property
    def _blank_ids(self) -> np.ndarray:
        """[V] bool: tokens of white space."""
        blank = np.zeros((self.network.config.vocab_size,), bool)
        texts = self.tokenizer.token_texts[: len(blank)]
        blank[: len(texts)] = [text.isspace() for text in texts]
        return blank

    @cached_property
    def _stop_ids(self) -> Callable[[tuple[str, ...]], np.ndarray]:
        """[V] int8 of stop texts: 2 for end-of-sequence tokens, 1 for tokens whose text contains a stop text, or 0."""

        def stop_ids(stop: tuple[str, ...]) -> np.ndarray:
            ids = np.zeros((self.network.config.vocab_size,), np.int8)
            for text in stop:
                containing = self.tokenizer.ids_containing(text)[: len(ids)]
                ids[: len(containing)] |= containing
            ids[list(self.tokenizer.eos_ids)] = 2
            return ids

        return lru_cache(_TABLES)(stop_ids)

    def text_so_far(self, request: SampleRequest, tokens: np.ndarray) -> str:
        """The text of an unfinished answer that no later token can change, with the white space before it."""
        text = self.tokenizer.decode(tokens.tolist())
        answer = text.lstrip()
        return text[: len(text) - len(answer)] + certain(answer, request.stop)

    def space_before(self, ids: Sequence[int]) -> str:
        """The leading white space of an answer of these tokens, which is not part of ``Sample.text``."""
        ended = bool(ids) and ids[-1] in self.tokenizer.eos_ids
        text = self.tokenizer.decode(ids[:-1] if ended else ids)
        return text[: len(text) - len(text.lstrip())]

    def sample(self, request: SampleRequest, tokens: np.ndarray, logprobs: np.ndarray) -> Sample:
        """The answer to a request, from the tokens and log-probs that a batch sampled for it."""
        ids = [int(token) for token in tokens]
        ended = ids[-1] in self.tokenizer.eos_ids
        full_text = answer_text(self.tokenizer, ids[:-1] if ended else ids)
        text = cut(full_text, request.stop)
        finish: Literal["stop", "length"] = "stop" if ended or text != full_text else "length"
        return Sample(tuple(ids), tuple(float(p) for p in logprobs[: len(ids)]), text, finish)
