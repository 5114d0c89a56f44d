"""Batches are a function of (seed, index), for any number of processes and restarts."""

import json
import types

import numpy as np
import pytest

from lmjax.data.examples import ElectraPairs, FullSentences, Packed, SegmentPairs, SegmentStream
from lmjax.data.examples.stand_in import stand_in_row
from lmjax.data.loader import Loader
from lmjax.errors import ConfigError

VOCABULARY = types.SimpleNamespace(pad=0, cls=2, sep=3, eod=5)
FORMS = [
    SegmentPairs(32, duplicates=2),
    SegmentPairs(32, "none", duplicates=1),
    ElectraPairs(32),
    FullSentences(32),
    Packed(32),
    SegmentStream(32, 16, bidirectional=True),
]
forms = pytest.mark.parametrize("form", FORMS, ids=lambda f: type(f).__name__)


def make_store(documents=40):
    rng = np.random.default_rng(0)
    sentences = np.concatenate([[0], np.cumsum(1 + rng.poisson(7, 10 * documents))])
    offsets = np.arange(documents + 1) * 10
    return types.SimpleNamespace(
        tokens=np.arange(10, 10 + sentences[-1]).astype(np.uint16),
        sentence_offsets=sentences,
        document_offsets=offsets,
        document_token_offsets=sentences[offsets],
        fingerprint="",
    )


STORE = make_store()


def load(form, batch_size=8, seed=0, **options):
    return Loader(form, STORE, VOCABULARY, batch_size=batch_size, seed=seed, **options)


def take(loader, count):
    batches = [next(loader) for _ in range(count)]
    loader.close()
    return batches


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
        assert a[name].dtype == b[name].dtype == np.int32


@forms
def test_batch_is_a_function_of_seed_and_index(form):
    loader = load(form)
    batches = take(loader, 6)
    fresh = load(form)
    for i in (4, 0, 5, 2):  # any order
        assert_equal(fresh.batch_at(i), batches[i])
    assert batches[0]["tokens"].shape == (8, 32)
    assert not np.array_equal(load(form, seed=1).batch_at(0)["tokens"], batches[0]["tokens"])


@forms
def test_processes_share_the_global_batch(form):
    whole = load(form)
    parts = [load(form, process_index=p, process_count=4) for p in range(4)]
    far = whole.batches_per_epoch + 1
    for i in (0, 3, far):
        shares = [part.batch_at(i) for part in parts]
        assert all(len(s["tokens"]) == 2 for s in shares)
        assert_equal(
            {k: np.concatenate([s[k] for s in shares]) for k in shares[0]}, whole.batch_at(i)
        )


@forms
def test_state_restores_the_position(form):
    loader = load(form)
    take(loader, 3)
    state = json.loads(json.dumps(loader.get_state()))
    want = take(loader, 4)  # the state is of the third batch, however far prefetching went
    other = load(form)
    next(other)
    other.set_state(state)
    for a, b in zip(take(other, 4), want, strict=True):
        assert_equal(a, b)
    assert other.get_state() == {"next_batch": 7, "skipped": []}


def test_state_far_ahead_is_restored_at_once():
    loader = load(Packed(32))
    far = loader.batches_per_epoch * 10**7 + 3
    loader.set_state({"next_batch": far, "skipped": []})
    assert_equal(take(loader, 1)[0], loader.batch_at(far))


@pytest.mark.parametrize("form", FORMS[:4], ids=lambda f: type(f).__name__)
def test_epochs_cover_all_rows_in_new_orders(form):
    source = form.source(STORE, VOCABULARY, seed=0, split="train", rows=1)
    loader, size = load(form, batch_size=1), len(source)
    assert loader.batches_per_epoch == size
    epochs = [
        [loader.batch_at(e * size + i)["tokens"].tobytes() for i in range(size)] for e in (0, 1)
    ]
    for e, epoch in enumerate(epochs):
        assert sorted(epoch) == sorted(
            source[e * size + i]["tokens"].tobytes() for i in range(size)
        )
        assert epoch != [source[e * size + i]["tokens"].tobytes() for i in range(size)]
    assert epochs[0] != epochs[1]


def test_without_shuffling_rows_come_in_order_and_wrap():
    form = SegmentPairs(32, duplicates=1)
    source = form.source(STORE, VOCABULARY, seed=0, split="validation", rows=1)
    loader = load(form, split="validation", shuffle=False)
    count = loader.batches_per_epoch + 1
    rows = np.concatenate([b["tokens"] for b in take(loader, count)])
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(row, source[i % len(source)]["tokens"])


@pytest.mark.parametrize("form", FORMS, ids=lambda f: type(f).__name__)
def test_a_stand_in_has_the_form_of_a_row(form):
    found, real = stand_in_row(form, VOCABULARY), load(form).batch_at(0)
    assert {name: (x.shape, x.dtype) for name, x in found.items()} == {
        name: (x.shape[1:], x.dtype) for name, x in real.items()
    }


def test_streams_are_not_shuffled():
    loader = load(SegmentStream(32, 16, bidirectional=True))
    a, b = loader.batch_at(0), loader.batch_at(1)
    assert a["direction"].tolist() == [1] * 4 + [-1] * 4
    # Tokens are numbered as they stand in the corpus, so neighbours differ by one.
    steps = b["tokens"][:, 0] - a["tokens"][:, 15]
    inside = (a["tokens"][:, 15] != 5) & (b["tokens"][:, 0] != 5)
    assert inside.sum() >= 4
    assert np.array_equal(steps[inside], a["direction"][inside])


def test_config_errors_name_the_field():
    for problem, options in {
        r"config\.training\.batch_size: 6 rows cannot be divided": dict(
            batch_size=6, process_count=4
        ),
        r"config\.training\.batch_size: 0 is not positive": dict(batch_size=0),
        r"config\.training\.batch_size: the train split has": dict(batch_size=10**6),
        r"config\.seed: -1": dict(seed=-1),
    }.items():
        with pytest.raises(ConfigError, match="^" + problem):
            load(Packed(32), **options)
