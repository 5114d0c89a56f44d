"""Shapes of batches, and which rows go together."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmjax.data import batching


def test_lengths_are_rounded_up() -> None:
    assert [batching.power_of_two(n) for n in (1, 2, 3, 8, 9)] == [1, 2, 4, 8, 16]
    assert batching.power_of_two(3, 16) == 16
    assert [batching.multiple_of(8, n) for n in (1, 8, 9)] == [8, 8, 16]
    assert [batching.first_that_holds((4, 8), n) for n in (1, 4, 5)] == [4, 4, 8]
    with pytest.raises(ValueError, match="9 tokens do not fit in 8"):
        batching.first_that_holds((4, 8), 9)


lengths = st.lists(st.integers(1, 40), max_size=30)


@given(lengths, st.integers(1, 9), st.integers(10, 100))
def test_rows_of_similar_length_go_together(found: list[int], rows: int, tokens: int) -> None:
    made = list(batching.by_length(found, rows, lambda longest: tokens // longest))
    order = [i for chosen, _ in made for i in chosen]
    assert order == sorted(range(len(found)), key=found.__getitem__)
    for k, (chosen, count) in enumerate(made):
        assert 1 <= len(chosen) <= count <= rows
        assert len(chosen) == count or k + 1 == len(made)
        assert count == 1 or count * found[chosen[-1]] <= tokens
    plain = list(batching.by_length(found, rows))
    assert all(count == rows for _, count in plain)
    assert len(plain) == -(-len(found) // rows)


def test_arrays_are_padded_and_stacked() -> None:
    two, one = np.array([1, 2]), np.array([3])
    assert batching.pad(two, 4, 9, left=True).tolist() == [9, 9, 1, 2]
    assert batching.pad(np.ones((2, 1), int), 2, 0).tolist() == [[1, 0], [1, 0]]
    assert batching.stack([two, one]).tolist() == [[1, 2], [3, 0]]
    padded = batching.stack([one, two], 3, 9, rows=3, left=True)
    assert padded.tolist() == [[9, 9, 3], [9, 1, 2], [9, 9, 3]]
    tokens = batching.real([1, 2], 3, rows=3, left=True)
    assert (tokens == (padded != 9)).all() and tokens.dtype == bool
    assert batching.stack([two]).dtype == two.dtype
