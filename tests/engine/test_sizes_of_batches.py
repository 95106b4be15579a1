"""Numbers of rows that a batch takes as it gets smaller."""

import pytest

from optimas_jax.engine.decode_batch import coarse_sizes, rows_for


@pytest.mark.parametrize("sizes", [(4,), (4, 8), (4, 8, 16, 24, 40), (8, 16, 32, 64, 128, 256)])
def test_a_batch_of_any_size_has_a_coarse_one_that_holds_it(sizes):
    coarse = coarse_sizes(sizes)
    assert set(coarse) <= set(sizes) and len(coarse) == (len(sizes) + 1) // 2
    for count in range(1, sizes[-1] + 1):
        assert count <= rows_for(count, sizes) <= rows_for(count, coarse) <= sizes[-1]
