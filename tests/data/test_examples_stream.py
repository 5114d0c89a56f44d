"""Packed, FullSentences, SegmentStream: the concatenated corpus comes back, whole and in step."""

import random
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax.configuration import build
from lmjax.data.examples import FullSentences, Packed, SegmentStream
from lmjax.data.examples.concatenated import Concatenation, stream_length
from lmjax.data.examples.stream import split_a_and_b
from lmjax.errors import ConfigError

CLS, SEP, EOD = 2, 3, 5
VOCABULARY = types.SimpleNamespace(pad=0, cls=CLS, sep=SEP, eod=EOD)


def make_store(documents):
    """A store of documents, lists of sentence sizes, whose tokens are their own index."""
    sizes = [size for document in documents for size in document]
    sentences = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    offsets = np.concatenate([[0], np.cumsum([len(d) for d in documents], dtype=np.int64)])
    return types.SimpleNamespace(
        tokens=np.arange(10, 10 + sentences[-1]).astype(np.uint32),
        sentence_offsets=sentences,
        document_offsets=offsets,
        document_token_offsets=sentences[offsets],
        fingerprint="",
    )


def random_store(seed=0, documents=40):
    rng = np.random.default_rng(seed)
    return make_store([(1 + rng.poisson(6, 1 + rng.poisson(5))).tolist() for _ in range(documents)])


corpora = st.lists(
    st.lists(st.integers(1, 12), min_size=1, max_size=5), min_size=1, max_size=12
).map(make_store)


def concatenated(store, order, eod_first):
    """Tokens and sentence ids of the documents in `order`, one token at a time."""
    tokens, sentence_ids, owners = [], [], []
    sentence = 0
    for n, d in enumerate(order):
        if eod_first:
            tokens.append(EOD)
            sentence_ids.append(sentence + 1)
        for s in range(store.document_offsets[d], store.document_offsets[d + 1]):
            sentence += 1
            part = store.tokens[store.sentence_offsets[s] : store.sentence_offsets[s + 1]]
            tokens += part.tolist()
            sentence_ids += [sentence] * len(part)
        if not eod_first:
            tokens.append(EOD)
            sentence_ids.append(sentence)
        owners += [n] * (len(tokens) - len(owners))
    return np.array(tokens), np.array(sentence_ids), np.array(owners)


@settings(max_examples=50, deadline=None)
@given(corpora, st.booleans(), st.integers(0, 3))
def test_concatenation_is_the_corpus_in_another_order(store, eod_first, epoch):
    stream = Concatenation(store, EOD, eod_first=eod_first, seed=1, split="train", epoch=epoch)
    assert sorted(stream.order) == list(range(len(store.document_offsets) - 1))
    tokens, ids, owners = concatenated(store, stream.order, eod_first)
    assert len(stream) == stream_length(store) == len(tokens)
    assert np.array_equal(stream.read(0, len(stream)), tokens)
    assert np.array_equal(stream.owners(0, len(stream)), owners)
    rng = np.random.default_rng(0)
    for _ in range(5):
        a, b = np.sort(rng.choice(len(tokens) + 1, 2, replace=False))
        assert np.array_equal(stream.read(a, b), tokens[a:b])
    if not eod_first:
        starts = np.flatnonzero(np.diff(ids, prepend=0))
        assert np.array_equal(stream.sentence_starts(), starts)


@pytest.mark.parametrize("across", [False, True])
@settings(max_examples=40, deadline=None)
@given(store=corpora, length=st.integers(2, 20))
def test_packed_rows_lose_only_the_tail(across, store, length):
    if stream_length(store) < length:
        return
    form = Packed(length, across_documents=across)
    source = form.source(store, VOCABULARY, seed=3, split="train", rows=1)
    for epoch in (0, 2):
        stream = Concatenation(store, EOD, eod_first=True, seed=3, split="train", epoch=epoch)
        tokens, _, owners = concatenated(store, stream.order, True)
        rows = [source[i] for i in range(epoch * len(source), (epoch + 1) * len(source))]
        assert np.array_equal(
            np.concatenate([r["tokens"] for r in rows]), tokens[: -(len(tokens) % length) or None]
        )
        for n, row in enumerate(rows):
            assert all(x.dtype == np.int32 and x.shape == (length,) for x in row.values())
            assert not row["token_types"].any()
            if across:
                assert (row["segment_ids"] == 1).all()
                assert np.array_equal(row["positions"], np.arange(length))
                continue
            own = owners[n * length : (n + 1) * length]
            assert row["segment_ids"][0] == 1
            assert np.array_equal(np.diff(row["segment_ids"]), np.diff(own))
            for d in np.unique(row["segment_ids"]):
                inside = row["segment_ids"] == d
                assert np.array_equal(row["positions"][inside], np.arange(inside.sum()))
                if d > 1:
                    assert row["tokens"][inside][0] == EOD


def full_sentences(store, order, room):
    """The text of each row, one sentence at a time; one longer than a row is cut into rows."""
    rows, row = [], []
    for d in order:
        for s in range(store.document_offsets[d], store.document_offsets[d + 1]):
            text = store.tokens[store.sentence_offsets[s] : store.sentence_offsets[s + 1]].tolist()
            for piece in (text[i : i + room] for i in range(0, len(text), room)):
                if len(row) + len(piece) > room:
                    rows, row = [*rows, row], []
                row = row + piece
        row = [*row, SEP]
    return [text[:-1] if text[-1] == SEP else text for text in [*rows, row]]


@settings(max_examples=60, deadline=None)
@given(store=corpora, room=st.integers(1, 25), spare=st.integers(0, 1))
def test_full_sentences_fill_rows_in_order(store, room, spare):
    source = FullSentences(room + 2).source(store, VOCABULARY, seed=3, split="train", rows=1)
    stream = Concatenation(store, SEP, eod_first=False, seed=3, split="train", epoch=0)
    expected = full_sentences(store, stream.order, room)
    assert len(source) == len(expected)
    for n, text in enumerate(expected):
        row = source[n + spare * len(expected)]
        assert all(x.dtype == np.int32 and x.shape == (room + 2,) for x in row.values())
        real = row["segment_ids"] == 1
        assert row["tokens"][real].tolist() == [CLS, *text, SEP]
        assert not row["tokens"][~real].any() and not row["token_types"].any()
        assert np.array_equal(row["positions"], np.arange(room + 2))


def test_epochs_and_seeds_reorder_documents():
    store = random_store()
    make = lambda seed, split: Packed(16).source(store, VOCABULARY, seed=seed, split=split, rows=1)  # noqa: E731
    source = make(0, "train")
    firsts = [source[0], source[len(source)], make(1, "train")[0], make(0, "validation")[0]]
    assert len({tuple(r["tokens"]) for r in firsts}) == 4


def stream_rows(form, store, rows, seed=0):
    source = form.source(store, VOCABULARY, seed=seed, split="train", rows=rows)
    steps = len(source) // rows
    return source, [[source[i * rows + r] for r in range(rows)] for i in range(steps)]


@pytest.mark.parametrize("bidirectional", [False, True])
def test_stream_rows_continue_from_step_to_step(bidirectional):
    store, rows, length, reuse = random_store(documents=60), 4, 32, 12
    form = SegmentStream(length, reuse, bidirectional)
    _, batches = stream_rows(form, store, rows)
    stream = Concatenation(store, EOD, eod_first=False, seed=0, split="train", epoch=0)
    tokens, ids, _ = concatenated(store, stream.order, False)
    texts = rows // 2 if bidirectional else rows
    size = len(tokens) // texts
    assert len(batches) == (size - length) // reuse + 1 > 10
    follows = []
    for r in range(rows):
        text = tokens[r % texts * size : (r % texts + 1) * size]
        sentence = ids[r % texts * size : (r % texts + 1) * size]
        if r >= texts:
            text, sentence = text[::-1], sentence[::-1]
        for i, batch in enumerate(batches):
            row = batch[r]
            start, body = i * reuse, row["tokens"]
            assert np.array_equal(body[:reuse], text[start : start + reuse])
            a_sep, b_sep = np.flatnonzero(body == SEP)
            assert b_sep == length - 2 and body[-1] == CLS
            assert np.array_equal(body[:a_sep], text[start : start + a_sep])
            segments = np.zeros(length)
            segments[a_sep + 1 : -1], segments[-1] = 1, 2
            assert np.array_equal(row["token_types"], segments)
            b = body[a_sep + 1 : b_sep]
            assert len(b)
            assert any(
                np.array_equal(text[p : p + len(b)], b)
                for p in np.flatnonzero(text[: size - len(b) + 1] == b[0])
            )
            follows.append(np.array_equal(b, text[start + a_sep : start + a_sep + len(b)]))
            assert (row["segment_ids"] == 1).all()
            assert np.array_equal(row["positions"], np.arange(length))
            assert all(x.dtype == np.int32 for x in row.values())
            if bidirectional:
                assert row["direction"] == (1 if r < texts else -1)
            else:
                assert "direction" not in row
            if i + 1 < len(batches):  # memories: the next row begins where this one's reuse ends
                seam = np.concatenate([body[:reuse], batches[i + 1][r]["tokens"][:reuse]])
                assert np.array_equal(seam, text[start : start + 2 * reuse])
    # At most half; fewer where A has no sentence's end or is cut, and a gap is left.
    assert 0.2 < np.mean(follows) < 0.55


def original_split(sentence, begin, room, rng):
    """XLNet's _split_a_and_b on sentence ids, one token at a time."""
    size = len(sentence)
    end, cuts = begin + 1, []
    while end < size:
        if sentence[end] != sentence[end - 1]:
            if end - begin >= room:
                break
            cuts.append(end)
        end += 1
    if not cuts or rng.random() < 0.5:
        a_end = rng.choice(cuts) if cuts else end
        least = max(1, room - (a_end - begin))
        b = rng.randint(0, size - 1 - least)
        b_end = b + least
        while b > 0 and sentence[b - 1] == sentence[b]:
            b -= 1
        while b_end < size - 1 and sentence[b_end - 1] == sentence[b_end]:
            b_end += 1
    else:
        a_end = rng.choice(cuts)
        b, b_end = a_end, end
    while a_end - begin + b_end - b > room:
        if a_end - begin > b_end - b:
            a_end -= 1
        else:
            b_end -= 1
    return (begin, a_end), (b, b_end)


@pytest.mark.parametrize("seed", range(4))
def test_split_is_that_of_the_original(seed):
    rng = np.random.default_rng(seed)
    sentence = np.repeat(np.arange(9), 1 + rng.poisson(3, 9))
    begin, room = int(rng.integers(0, 8)), int(rng.integers(4, 14))
    cuts = np.flatnonzero(np.diff(sentence)) + 1
    trials = 4000
    mine = [split_a_and_b(cuts, len(sentence), begin, room, rng) for _ in range(trials)]
    theirs = random.Random(seed)
    want = [original_split(sentence, begin, room, theirs) for _ in range(trials)]
    assert all(a[1] - a[0] + b[1] - b[0] == room and b[1] > b[0] for a, b in mine)
    for result in set(mine) | set(want):
        assert mine.count(result) / trials == pytest.approx(want.count(result) / trials, abs=0.04)
    assert len(set(mine)) > 1


@settings(max_examples=60, deadline=None)
@given(corpora, st.integers(1, 4), st.integers(6, 16), st.data())
def test_any_corpus_streams(store, rows, length, data):
    reuse = data.draw(st.integers(1, length - 5))
    form = SegmentStream(length, reuse)
    if stream_length(store) // rows < length:
        with pytest.raises(ConfigError, match=r"^config\.training\.batch_size"):
            form.source(store, VOCABULARY, seed=0, split="train", rows=rows)
        return
    source, batches = stream_rows(form, store, rows)
    assert all(r["tokens"].shape == (length,) for batch in batches for r in batch)
    assert source[len(source) + rows - 1]["tokens"].shape == (length,)  # the next epoch


def test_config_errors_name_the_field():
    where = "config.data.examples"
    for reuse in (0, 16, 12):
        with pytest.raises(ConfigError, match=r"^config\.data\.examples\.reuse_length: "):
            build(SegmentStream, {"length": 16, "reuse_length": reuse}, where)
    with pytest.raises(
        ConfigError, match=r"^config\.data\.examples\.length: must be at least 2, got 1"
    ):
        build(Packed, {"length": 1}, where)
    store = random_store()
    with pytest.raises(ConfigError, match=r"^config\.training\.batch_size: 3 is odd"):
        SegmentStream(16, 8, True).source(store, VOCABULARY, seed=0, split="train", rows=3)
    with pytest.raises(ConfigError, match=r"^config\.training\.batch_size: the train split has 0 "):
        Packed(16).source(make_store([[3]]), VOCABULARY, seed=0, split="train", rows=1)
