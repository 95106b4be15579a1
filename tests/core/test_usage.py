from hypothesis import given
from hypothesis import strategies as st

from optimas_jax.core.usage import Usage

COUNTS = st.integers(0, 10**9)
DYADIC = COUNTS.map(lambda number: number / 1024)  # sums of these are exact
USAGES = st.builds(Usage, COUNTS, COUNTS, COUNTS, DYADIC, DYADIC, COUNTS, COUNTS)


@given(USAGES, USAGES)
def test_usage_adds_up_field_by_field(a, b):
    assert a + b == b + a and a + b - b == a and a + Usage() == a
    assert (a + b).tokens == a.tokens + b.tokens == a.prompt_tokens + a.completion_tokens + b.tokens


def test_usage_survives_the_round_trip_and_shows_its_tokens():
    usage = Usage(1, 2, 3, 0.25, 1.5, 4, 5)
    assert usage.to_json()["tokens"] == 5 and Usage.from_json(usage.to_json()) == usage
