"""Random requests: right answers, or refusals in JSON."""

import fuzz_requests
import pytest
import tiny
from served import serving


@pytest.fixture(scope="module")
def url():
    with serving(tiny.sampler(), "m") as address:
        yield address


def test_requests_are_answered_or_refused(url):
    kinds = fuzz_requests.fuzz(url, seed=0, count=400)
    assert kinds["answer"] > 50 and kinds["400"] > 50
