"""Several examples in a row: which ones, and what the rows look like."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax.data.examples import ElectraPairs, SegmentPairs
from lmjax.data.examples.bin_packing import bin_packing
from lmjax.errors import ConfigError
from tests.data.test_examples_pairs import random_store, source_of

FORMS = {"bert": SegmentPairs, "electra": ElectraPairs}


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_every_example_has_a_place_once(data: st.DataObject) -> None:
    length = data.draw(st.integers(1, 40))
    sizes = np.array(data.draw(st.lists(st.integers(1, length), max_size=60)), np.int64)
    most = data.draw(st.integers(1, 5))
    rows = bin_packing(sizes, length, most, np.random.default_rng(0))
    assert rows.shape[1] == most
    assert sorted(rows[rows >= 0]) == list(range(len(sizes)))
    assert (rows[:, 0] >= 0).all()
    assert (np.where(rows >= 0, sizes[rows], 0).sum(1) <= length).all() if len(sizes) else True
    # No two rows could be one.
    totals = [(int((row >= 0).sum()), int(sizes[row[row >= 0]].sum())) for row in rows]
    for (count, total), (other, rest) in itertools.combinations(totals, 2):
        assert count + other > most or total + rest > length


def test_partners_and_rows_are_in_a_random_order() -> None:
    sizes = np.repeat([12, 8], 100)
    first, second = (bin_packing(sizes, 20, 3, np.random.default_rng(seed)) for seed in (0, 1))
    same = bin_packing(sizes, 20, 3, np.random.default_rng(0))
    assert np.array_equal(first, same) and not np.array_equal(first, second)
    assert len(first) == 100
    assert abs(np.corrcoef(first[:, 0], first[:, 1])[0, 1]) < 0.3
    assert abs(np.corrcoef(first[:, 0], np.arange(100))[0, 1]) < 0.3


@pytest.mark.parametrize("name", FORMS)
def test_rows_hold_the_examples_as_they_are(name: str) -> None:
    store, length, most = random_store(mean=5), 64, 4
    alone = source_of(FORMS[name](length=length, short_probability=0.5), store)
    form = FORMS[name](length=length, short_probability=0.5, pairs_per_row=most)
    shared = source_of(form, store)
    seen = []
    for i in range(len(shared)):
        row = shared[i]
        assert {len(row[x]) for x in ("tokens", "token_types", "segment_ids", "positions")} == {64}
        numbers = row["segment_ids"]
        assert (np.diff(numbers[numbers > 0]) >= 0).all() and not numbers[
            np.sum(numbers > 0) :
        ].any()
        for place, number in enumerate(shared.members[i][shared.members[i] >= 0]):
            example, here = alone[int(number)], numbers == place + 1
            real = example["segment_ids"] > 0
            for field in ("tokens", "token_types", "positions"):
                assert np.array_equal(row[field][here], example[field][real])
            assert row["starts"][place] == np.argmax(here)
            if name == "bert":
                assert row["label"][place] == example["label"]
            seen.append(number)
        count = numbers.max()
        assert row["starts"].shape == (most,) and not row["starts"][count:].any()
        assert name != "bert" or (row["label"][count:] == -1).all()
        assert (row["tokens"][numbers == 0] == 0).all()
        assert all(x.dtype == np.int32 for x in row.values())
    assert sorted(seen) == list(range(len(alone)))


@pytest.mark.parametrize(("name", "least"), [("bert", 0.95), ("electra", 0.85)])
def test_little_is_padding(name: str, least: float) -> None:
    def filled(most: int) -> float:
        source = source_of(FORMS[name](length=128, pairs_per_row=most), random_store(mean=7))
        return float(np.mean([source[i]["segment_ids"] > 0 for i in range(len(source))]))

    assert filled(1) < 0.75
    assert filled(4) > least


def test_too_few_rows_are_refused() -> None:
    store = random_store(documents=4)
    rows = len(source_of(SegmentPairs(length=64), store))
    with pytest.raises(ConfigError, match=r"batch_size: the train split has \d+ examples"):
        source_of(SegmentPairs(length=64, pairs_per_row=8), store, rows=rows)
    with pytest.raises(ConfigError, match="pairs_per_row: must be at least 1, got 0"):
        SegmentPairs(length=64, pairs_per_row=0)
