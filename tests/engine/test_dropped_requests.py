"""Requests that are given up leave the batch between two steps; the others' answers are as if they had been alone."""

import pytest
import tiny

from optimas_jax.engine.sampler import SampleRequest


@pytest.fixture(scope="module")
def sampler():
    return tiny.sampler()


@pytest.mark.parametrize("kind", ["own_batch", "shared_batch"])
def test_a_dropped_request_frees_its_row(sampler, kind):
    requests = [SampleRequest(tuple(range(5, 15 + n)), 12, temperature=1.0, seed=n) for n in range(3)]
    expected = sampler.generate(requests)
    batch = getattr(sampler, kind)()
    rows = [(number, sampler.row_request(request)) for number, request in enumerate(requests)]
    assert sorted(batch.admit(rows[:2])) == [0, 1]
    assert batch.step(4) == []
    batch.drop([0])
    assert batch.active == [1]
    batch.admit([rows[2]])  # into the free row
    finished = {}
    while batch.active:
        finished |= {key: tokens.tolist() for key, tokens, _ in batch.step(5)}
    assert finished == {number: list(expected[number].ids) for number in (1, 2)}
    assert sorted(batch.admit(rows)) == [0, 1, 2]  # nothing of it is left
    batch.drop([0, 1, 2])
    assert batch.active == [] and batch.step(4) == []
