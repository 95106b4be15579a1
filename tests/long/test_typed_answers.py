"""Two hundred answers of the embedded model by nested schemas at temperature 1, and what keeping to them costs."""

import dataclasses
import time

import pytest
from typed_answers import answer_request

from optimas_jax.engine.pool import Engines
from optimas_jax.parallel.mesh import MeshConfig
from optimas_jax.presets import EMBEDDED
from optimas_jax.report.console import ConsoleProgress

pytestmark = [pytest.mark.long, pytest.mark.embedded]
COUNT = 200


def test_all_answers_are_of_their_type_and_within_their_limit(capsys):
    sampler = Engines(MeshConfig(data=1), ConsoleProgress(quiet=True)).sampler(EMBEDDED)
    asked = [answer_request(sampler, number) for number in range(COUNT)]
    requests = [request for _, request in asked]
    samples = timed(sampler, requests)[0]
    for (answers, request), sample in zip(asked, samples, strict=True):
        answers.restore(answers.read(sample.text))
        assert sample.finish == "stop" and len(sample.ids) <= request.max_tokens
    # As many tokens without schemas; everything is compiled before.
    free = [
        dataclasses.replace(request, schema="", max_tokens=len(sample.ids))
        for request, sample in zip(requests, samples, strict=True)
    ]
    timed(sampler, free)
    (again, seconds), (loose, free_seconds) = timed(sampler, requests), timed(sampler, free)
    assert again == samples
    speed, free_speed = tokens_of(samples) / seconds, tokens_of(loose) / free_seconds
    with capsys.disabled():
        print(
            f"\n{COUNT} of {COUNT} answers are of their type and end in time; {speed:.0f} tokens/s by schema, "
            f"{free_speed:.0f} without: {free_speed / speed:.2f} times the time"
        )


def tokens_of(samples):
    return sum(len(sample.ids) for sample in samples)


def timed(sampler, requests):
    started = time.perf_counter()
    return sampler.generate(requests), time.perf_counter() - started
