"""The imagined engine: its seconds worked out by hand, and its batches beside those of the engine."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from fakes import request

from optimas_jax.engine.batching import ContinuousBatch
from optimas_jax.engine.decode_batch import DecodeBatch
from optimas_jax.engine.pool import Engines
from optimas_jax.engine.prefill import Prefiller
from optimas_jax.engine.sampler import SampleRequest
from optimas_jax.engine.speed import EngineSpeed
from optimas_jax.llm.local import STEP_TOKENS
from optimas_jax.loop.forecast.imagined_engine import ImaginedEngine
from optimas_jax.parallel.mesh import MeshConfig
from optimas_jax.parallel.platform import Compute, default_compute
from optimas_jax.report.console import ConsoleProgress

# A token of a prompt takes 1 s, a pass 10 s and a step 1,000 s; loading takes 100,000 s and 1,000,000 s.
SPEED = EngineSpeed((1.0, 1.0), 10.0, ((1000.0, 1000.0),) * 4, 100_000.0, 1_000_000.0)
COMPUTE = dataclasses.replace(default_compute(), decode_rows=(4, 8, 16, 32), lanes=1)
PASS = 64.0 + 10.0  # of up to 64 tokens


async def nothing() -> None:
    pass


def engine(compute: Compute = COMPUTE) -> ImaginedEngine:
    return ImaginedEngine(SPEED, compute, nothing)


def asked(name: str, limit: int = 100):
    return request(f"{name} {name}", max_tokens=limit)


def seconds(imagined: ImaginedEngine, *answers: tuple[str, int]) -> list[float]:
    """Seconds of answers of so many tokens, to prompts of 30 tokens that are sent together."""

    async def together() -> list[float]:
        return await asyncio.gather(*(imagined.answer(asked(name), 30, tokens) for name, tokens in answers))

    return asyncio.run(together())


def test_an_answer_takes_its_pass_its_steps_and_the_programs_that_are_new():
    imagined = engine()
    assert seconds(imagined, ("a", 20)) == [1_100_000 + PASS + 20_000]
    assert seconds(imagined, ("b", 20)) == [PASS + 20_000]
    imagined.forget_programs()
    assert seconds(imagined, ("c", 20)) == [1_100_000 + PASS + 20_000]


def test_what_a_prompt_shares_with_an_earlier_one_is_not_computed_again():
    imagined = engine()
    seconds(imagined, ("a", 1))
    assert seconds(imagined, ("a", 1)) == [PASS + 1000]  # 29 tokens less one block of 16
    adapted = dataclasses.replace(asked("a"), adapter="b")
    assert asyncio.run(imagined.answer(adapted, 100, 1)) == 100_000 + 128 + 10 + 1000  # of another model, as it were


def test_requests_in_flight_share_the_seconds_until_a_quarter_of_them_has_ended():
    imagined = engine()
    seconds(imagined, *[(str(number), 1) for number in range(4)])  # loads the programs
    first, *others = seconds(imagined, ("a", 2), ("b", 6), ("c", 6), ("d", 6))
    together = (128 + 10 + 2000) / 4  # 4 x 29 tokens have room for 128
    assert first == together and others == [together + 4000 / 3] * 3


def test_requests_that_come_meanwhile_join_when_others_end():
    imagined = engine()

    async def chain() -> list[float]:
        async def twice() -> float:
            await imagined.answer(asked("a"), 30, 2)
            return await imagined.answer(asked("b"), 30, 10)

        return await asyncio.gather(twice(), imagined.answer(asked("c"), 30, 12))

    imagined._programs |= {(64,), (128,), (4, 256)}
    second, long = asyncio.run(chain())
    assert second == (PASS + 10_000) / 2
    assert long == (64 + 10 + 2000) / 2 + second


def test_a_request_that_was_given_up_leaves_and_the_others_end():
    imagined = engine()

    async def given_up() -> float:
        left = asyncio.ensure_future(imagined.answer(asked("a"), 30, 1000))
        stays = asyncio.ensure_future(imagined.answer(asked("b"), 30, 40))
        leaves_after_one_advance(left)
        return await stays

    def leaves_after_one_advance(task: asyncio.Task[float]) -> None:
        advance = imagined._advance

        def once() -> bool:
            answered = advance()
            task.cancel()
            imagined._advance = advance  # type: ignore[method-assign]
            return answered

        imagined._advance = once  # type: ignore[method-assign]

    assert asyncio.run(given_up()) == (1_100_000 + PASS + 16_000) / 2 + 24_000
    assert imagined._flying == []


def test_an_error_of_the_tape_reaches_every_caller():
    async def broken() -> None:
        raise OSError("disk full")

    imagined = ImaginedEngine(SPEED, COMPUTE, broken)

    async def all_errors() -> list[BaseException | float]:
        return await asyncio.gather(*(imagined.answer(asked(name), 30, 5) for name in "ab"), return_exceptions=True)

    assert [str(error) for error in asyncio.run(all_errors())] == ["disk full"] * 2
    assert imagined._flying == []


@pytest.fixture(scope="module")
def sampler():
    """An engine whose answers go on to their limits."""
    sampler = Engines(MeshConfig(data=1), ConsoleProgress(quiet=True)).sampler("random:0")
    return dataclasses.replace(sampler, tokenizer=dataclasses.replace(sampler.tokenizer, eos_ids=()))


def sizes_of_the_engine(sampler, requests: Sequence[SampleRequest]) -> list[tuple[int, int]]:
    """Tokens of every pass, and rows and slots of each batch before each of its steps."""
    sizes, decode, compute = [], DecodeBatch._decode, Prefiller._compute
    batch: ContinuousBatch[int] = sampler.batch()
    waiting = [(number, sampler.row_request(one)) for number, one in enumerate(requests)]
    with pytest.MonkeyPatch.context() as patch:

        def noted(self, *arguments):
            sizes.append(self.shape)
            decode(self, *arguments)

        def noted_pass(self, prompt_pass):
            sizes.append(prompt_pass.flat.input_ids.shape[-1:])
            return compute(self, prompt_pass)

        patch.setattr(DecodeBatch, "_decode", noted)
        patch.setattr(Prefiller, "_compute", noted_pass)
        while waiting or batch.active:
            admitted = batch.admit(waiting)
            waiting = [(key, one) for key, one in waiting if key not in admitted]
            batch.step(STEP_TOKENS)
    return sizes


@pytest.mark.parametrize(
    ("prompts", "limits"),
    [
        ([20, 20, 20], [5, 9, 30]),
        ([20] * 12, [*range(3, 15)]),
        ([20] * 6 + [200] * 6, [3, 8, 20, 33, 35, 60] * 2),
        ([20] * 30 + [150] * 10, [7, 11, 40, 52, 31] * 8),
        ([*range(10, 250, 4)], [12, 45, 17, 3] * 15),
        ([700, 300, 300, 280, 260, 90, 60, 30], [9] * 8),
        ([40, 41, 42], [600, 20, 300]),  # answers that outgrow their first slots
    ],
)
def test_its_passes_and_batches_have_the_sizes_of_the_engine_s(sampler, prompts, limits):
    rng = np.random.default_rng(sum(prompts))  # prompts that no other case has
    texts = [tuple(map(int, rng.integers(5, 200, size))) for size in prompts]
    expected = sizes_of_the_engine(sampler, [SampleRequest(*both) for both in zip(texts, limits, strict=True)])
    imagined = ImaginedEngine(SPEED, default_compute(), nothing)
    sizes, loaded = [], ImaginedEngine._loaded

    async def together() -> None:
        names = (chr(ord("a") + number) for number in range(len(prompts)))  # which share nothing
        requests = zip(names, prompts, limits, strict=True)
        await asyncio.gather(*(imagined.answer(asked(name, n), size, n) for name, size, n in requests))

    with pytest.MonkeyPatch.context() as patch:

        def noted(self, size, seconds):
            sizes.append(size)
            return loaded(self, size, seconds)

        patch.setattr(ImaginedEngine, "_loaded", noted)
        asyncio.run(together())
    assert sorted(sizes) == sorted(expected)
