"""SegmentPairs and ElectraPairs against plain transcriptions of their algorithms."""

import itertools
import random
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax.configuration import build, build_typed
from lmjax.data.examples import ElectraPairs, SegmentPairs, stateless_random
from lmjax.data.examples.electra import split_sentences
from lmjax.data.examples.pairs import kept_lengths
from lmjax.errors import ConfigError

PAD, CLS, SEP, EOD = 0, 2, 3, 5
VOCABULARY = types.SimpleNamespace(pad=PAD, cls=CLS, sep=SEP, eod=EOD)


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


def random_store(seed=0, documents=60, sentences=12, mean=9):
    rng = np.random.default_rng(seed)
    return make_store(
        [
            (1 + rng.poisson(mean - 1, 1 + rng.poisson(sentences - 1))).tolist()
            for _ in range(documents)
        ]
    )


def source_of(form, store, seed=0, split="train", rows=1):
    return form.source(store, VOCABULARY, seed=seed, split=split, rows=rows)


def segments_of(row):
    """The two segments as stretches of the store, specials checked and taken off."""
    tokens = row["tokens"][row["segment_ids"] == 1]
    assert tokens[0] == CLS and tokens[-1] == SEP
    ends = np.flatnonzero(tokens == SEP)
    assert np.array_equal(row["token_types"][: ends[0] + 1], np.zeros(ends[0] + 1))
    assert (row["token_types"][ends[0] + 1 : len(tokens)] == 1).all()
    assert (row["token_types"][len(tokens) :] == 0).all()
    assert (row["tokens"][len(tokens) :] == PAD).all()
    assert np.array_equal(row["positions"], np.arange(len(row["tokens"])))
    assert all(x.dtype == np.int32 for x in row.values())
    return tokens[1 : ends[0]] - 10, tokens[ends[0] + 1 : -1] - 10


def document_of(store, token):
    return np.searchsorted(store.document_token_offsets, token, side="right") - 1


def paper_pairs(store, length, short_probability, rng):
    """BERT's create_instances_from_document over all documents, told token by token."""
    tokens, bounds = store.tokens, store.sentence_offsets
    documents = [
        [tokens[bounds[s] : bounds[s + 1]].tolist() for s in range(first, stop)]
        for first, stop in zip(store.document_offsets, store.document_offsets[1:], strict=False)
    ]
    room, pairs = length - 3, []
    for d, document in enumerate(documents):
        target = rng.randint(2, room) if rng.random() < short_probability else room
        chunk, i = [], 0
        while i < len(document):
            chunk.append(document[i])
            if i == len(document) - 1 or sum(map(len, chunk)) >= target:
                a_end = rng.randint(1, len(chunk) - 1) if len(chunk) > 1 else 1
                a, b = list(itertools.chain(*chunk[:a_end])), []
                is_random = len(chunk) == 1 or rng.random() < 0.5
                if is_random:
                    for _ in range(10):
                        other = rng.randint(0, len(documents) - 1)
                        if other != d:
                            break
                    for j in range(
                        rng.randint(0, len(documents[other]) - 1), len(documents[other])
                    ):
                        b += documents[other][j]
                        if len(b) >= target - len(a):
                            break
                    i -= len(chunk) - a_end
                else:
                    b = list(itertools.chain(*chunk[a_end:]))
                while len(a) + len(b) > room:
                    longer = a if len(a) > len(b) else b
                    longer.pop(0 if rng.random() < 0.5 else -1)
                pairs.append((a, b, int(is_random)))
                chunk = []
            i += 1
    return pairs


@pytest.mark.parametrize("short_probability", [0.0, 1.0])
def test_next_sentence_statistics_are_those_of_the_paper(short_probability):
    store, passes = random_store(documents=80), 60
    rng = random.Random(0)
    want = [p for _ in range(passes) for p in paper_pairs(store, 48, short_probability, rng)]
    form = SegmentPairs(48, duplicates=passes, short_probability=short_probability)
    table = source_of(form, store, seed=1).table
    assert len(table.label) == pytest.approx(len(want), rel=0.02)
    assert table.label.mean() == pytest.approx(np.mean([p[2] for p in want]), abs=0.01)
    assert table.label.mean() > 0.5  # chunks of one sentence are always random
    for n, ranges in enumerate((table.first, table.second)):
        for label in (0, 1):
            part = ranges[table.label == label]
            mine, theirs = part[:, 1] - part[:, 0], [len(p[n]) for p in want if p[2] == label]
            quantiles = np.linspace(0.05, 0.95, 19)
            difference = np.quantile(mine, quantiles) - np.quantile(theirs, quantiles)
            assert np.abs(difference).max() <= 1
            assert mine.mean() == pytest.approx(np.mean(theirs), rel=0.02)
            # Where a segment begins inside its sentence tells how it was truncated.
            inside = ~np.isin(part[:, 0], store.sentence_offsets)
            begins = [p[n][0] - 10 for p in want if p[2] == label]
            outside = np.isin(begins, store.sentence_offsets)
            assert inside.mean() == pytest.approx(1 - outside.mean(), abs=0.015)


def test_short_targets_are_as_frequent_as_asked():
    # One long document per pass, cut where its target length says: the first chunk tells it.
    store = make_store([[1] * 200] * 2000)
    form = SegmentPairs(50, "none", duplicates=1, short_probability=0.1)
    table = source_of(form, store).table
    size = table.second[:, 1] - table.first[:, 0]
    first = size[np.isin(table.first[:, 0], store.document_token_offsets)]
    assert len(first) == 2000 and first.min() == 2 and first.max() == 47
    assert np.mean(first < 47) == pytest.approx(0.1 * 45 / 46, abs=0.02)
    assert first[first < 47].mean() == pytest.approx(24, abs=2.5)


def test_share_of_one_sentence_chunks_is_that_of_the_paper():
    store = make_store([[30] * 6, [3] * 7, [60] * 3, [8] * 20] * 10)
    rng = random.Random(0)
    want = [p for _ in range(10) for p in paper_pairs(store, 32, 0.3, rng)]
    table = source_of(SegmentPairs(32, duplicates=10, short_probability=0.3), store).table
    assert len(table.label) == pytest.approx(len(want), rel=0.03)
    assert table.label.mean() == pytest.approx(np.mean([p[2] for p in want]), abs=0.02)


@pytest.mark.parametrize("length", [5, 16, 40])
def test_next_sentence_pairs_tell_the_truth(length):
    store = random_store(documents=30)
    source = source_of(SegmentPairs(length, duplicates=3), store, split="validation")
    starts = set(store.sentence_offsets.tolist())
    for i in range(len(source)):
        row = source[i]
        a, b = segments_of(row)
        assert len(a) and len(b) and len(a) + len(b) <= length - 3
        for part in (a, b):
            assert np.array_equal(part, np.arange(part[0], part[0] + len(part)))
            assert document_of(store, part[0]) == document_of(store, part[-1])
        if row["label"] == 0:
            assert document_of(store, a[0]) == document_of(store, b[0]) and a[-1] < b[0]
            if len(a) + len(b) < length - 3:  # not truncated: neighbours, at a sentence's end
                assert b[0] == a[-1] + 1 and int(b[0]) in starts
        else:  # with 30 documents, ten tries always find another
            assert document_of(store, a[0]) != document_of(store, b[0])


def test_every_pass_covers_every_sentence_that_fits():
    # No pair is truncated: the firsts, and the seconds of label 0, make up each pass.
    store = random_store(mean=4)
    table = source_of(SegmentPairs(400, duplicates=2, short_probability=0.0), store).table
    seen = np.zeros(len(store.tokens), int)
    for (a, a_stop), (b, b_stop), label in zip(table.first, table.second, table.label, strict=True):
        seen[a:a_stop] += 1
        if not label:
            seen[b:b_stop] += 1
    assert (seen == 2).all()


@pytest.mark.parametrize("next_sentence", ["sop", "none"])
def test_consecutive_pairs(next_sentence):
    store = random_store(mean=12)
    source = source_of(SegmentPairs(32, next_sentence, duplicates=4), store)
    labels = []
    for i in range(len(source)):
        row = source[i]
        a, b = segments_of(row)
        assert len(a) and len(b)
        assert document_of(store, a[0]) == document_of(store, b[-1])
        if next_sentence == "sop":
            labels.append(int(row["label"]))
            assert (a[0] > b[-1]) if labels[-1] else (a[-1] < b[0])
        else:
            assert "label" not in row and a[-1] < b[0]
    if labels:
        assert np.mean(labels) == pytest.approx(0.5, abs=0.06)


def test_a_document_is_drawn_for_alone():
    # More documents, or fewer passes, do not change what a document's chunks are.
    store = random_store(documents=20)
    more = make_store(
        [np.diff(store.sentence_offsets[a : b + 1]).tolist() for a, b in _ranges(store)] + [[7, 7]]
    )
    form = SegmentPairs(40, "none", duplicates=1)
    few = source_of(form, store).table
    many = source_of(form, more).table
    assert np.array_equal(few.first, many.first[: len(few.first)])
    twice = source_of(SegmentPairs(40, "none", duplicates=2), store).table
    assert np.array_equal(few.second, twice.second[: len(few.second)])
    assert not np.array_equal(few.first, source_of(form, store, seed=1).table.first)
    assert not np.array_equal(few.first, source_of(form, store, split="test").table.first)


def _ranges(store):
    return zip(store.document_offsets[:-1], store.document_offsets[1:], strict=True)


def test_empty_sentences_and_documents_are_passed_over():
    full, holes = make_store([[4, 5], [6]]), make_store([[], [4, 0, 5], [0], [0, 6], []])
    form = SegmentPairs(16, duplicates=4)
    a, b = source_of(form, full).table, source_of(form, holes).table
    assert np.array_equal(a.first, b.first) and np.array_equal(a.second, b.second)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(2, 60))
def test_truncation_takes_from_the_longer_and_from_b_on_a_tie(a, b, room):
    want = [a, b]
    while sum(want) > room:
        want[0 if want[0] > want[1] else 1] -= 1
    assert [int(x) for x in kept_lengths(np.array(a), np.array(b), room)] == want


def test_draws_are_fair():
    keys = stateless_random.fold_in(stateless_random.root(3, "train"), np.arange(40_000))
    assert len(np.unique(keys)) == len(keys)
    uniform = stateless_random.uniform(keys, 7)
    assert np.abs(np.quantile(uniform, [0.1, 0.5, 0.9]) - [0.1, 0.5, 0.9]).max() < 0.01
    assert abs(np.corrcoef(uniform, stateless_random.uniform(keys, 8))[0, 1]) < 0.02
    assert abs(np.corrcoef(uniform[1:], uniform[:-1])[0, 1]) < 0.02
    dice = np.bincount(stateless_random.integers(keys, 1, 1, 6), minlength=7)
    assert dice[0] == 0 and np.abs(dice[1:] / len(keys) - 1 / 6).max() < 0.01
    for flips in (1, 3, 64, 100):
        heads = stateless_random.heads(keys, 2, np.full(len(keys), flips))
        assert heads.min() >= 0 and heads.max() <= flips
        assert heads.mean() == pytest.approx(flips / 2, rel=0.02)
        assert heads.var() == pytest.approx(flips / 4, rel=0.04)
    assert (stateless_random.heads(keys, 2, np.zeros(len(keys), int)) == 0).all()


def paper_electra(store, length, short_probability, single_probability, rng):
    """ELECTRA's ExampleBuilder, a target drawn for every example."""
    examples = []
    for first, stop in _ranges(store):
        held, s = [], first
        while s < stop:
            target = rng.randint(5, length) if rng.random() < short_probability else length
            held = []
            while s < stop and sum(map(len, held)) < target:
                held.append(
                    store.tokens[store.sentence_offsets[s] : store.sentence_offsets[s + 1]].tolist()
                )
                s += 1
            aim = 100_000 if rng.random() < single_probability else (target - 3) // 2
            a, b = [], []
            for x in held:
                if (
                    not a
                    or len(a) + len(x) < aim
                    or (not b and len(a) < aim and rng.random() < 0.5)
                ):
                    a += x
                else:
                    b += x
            a = a[: length - 2]
            examples.append((a, b[: max(0, length - len(a) - 3)]))
    return examples


def test_electra_statistics_are_those_of_the_original():
    store = random_store(documents=900, mean=8)
    form = ElectraPairs(48, short_probability=0.2, single_segment_probability=0.15)
    rng = random.Random(0)
    want = [x for _ in range(3) for x in paper_electra(store, 48, 0.2, 0.15, rng)]
    source = source_of(form, store)
    rows = [segments_of_electra(source[i]) for i in range(len(source))]
    assert len(rows) == pytest.approx(len(want) / 3, rel=0.03)
    for part in (0, 1):
        mine, theirs = [len(r[part]) for r in rows], [len(w[part]) for w in want]
        quantiles = np.linspace(0.05, 0.95, 19)
        difference = np.quantile(mine, quantiles) - np.quantile(theirs, quantiles)
        assert np.abs(difference).max() <= 2
        assert np.mean(mine) == pytest.approx(np.mean(theirs), rel=0.04)
    alone = np.mean([not len(r[1]) for r in rows])
    assert alone == pytest.approx(np.mean([not w[1] for w in want]), abs=0.02)


def segments_of_electra(row):
    tokens = row["tokens"][row["segment_ids"] == 1]
    if (tokens == SEP).sum() == 1:
        assert tokens[0] == CLS and tokens[-1] == SEP and not row["token_types"].any()
        return tokens[1:-1] - 10, tokens[:0]
    return segments_of(row)


def test_electra_pairs_are_of_one_text():
    store = random_store(documents=40)
    source = source_of(ElectraPairs(40), store)
    for i in range(len(source)):
        a, b = segments_of_electra(source[i])
        both = np.concatenate([a, b])
        assert len(a) and len(np.unique(both)) == len(both)
        assert len({document_of(store, t) for t in both}) == 1
        assert (np.diff(a) > 0).all() and (np.diff(b) > 0).all()


@given(st.lists(st.integers(1, 12), min_size=1, max_size=12), st.integers(1, 30), st.booleans())
def test_one_coin_is_enough_for_electra(sizes, aim, coin):
    a = b = asked = 0
    want = []
    for size in sizes:
        takes = not a or a + size < aim
        if not takes and not b and a < aim:
            asked += 1
            takes = coin
        want.append(takes)
        a, b = (a + size, b) if takes else (a, b + size)
    assert asked <= 1
    assert split_sentences(np.array(sizes), aim, coin).tolist() == want


def test_electra_sends_a_short_late_sentence_back_to_the_first_segment():
    assert split_sentences(np.array([5, 9, 2, 9]), 10, False).tolist() == [True, False, True, False]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 20), min_size=1, max_size=6), min_size=1, max_size=5),
    st.integers(5, 30),
    st.sampled_from(["nsp", "sop", "none"]),
)
def test_any_corpus_gives_well_formed_pairs(documents, length, next_sentence):
    store = make_store(documents)
    forms = [ElectraPairs(length, 0.5, 0.5), SegmentPairs(length, next_sentence, 2, 0.5)]
    for form in forms:
        source = source_of(form, store, rows=0, split="validation")
        for i in range(len(source)):
            a, b = segments_of_electra(source[i])
            assert len(a) and len(a) + len(b) + 2 + bool(len(b)) <= length


@pytest.mark.parametrize(("alone", "refused"), [(75, False), (85, True)])
def test_labels_that_are_nearly_all_one_are_refused(alone, refused):
    # A document of one sentence has a random partner; of two, half of them.
    store = make_store([[6]] * alone + [[6, 6]] * (100 - alone))
    form = SegmentPairs(64, short_probability=0.0)
    if refused:
        says = r"^config\.data\.examples\.next_sentence: 9\d\.\d% .* \(documents have 1\.1\)"
        with pytest.raises(ConfigError, match=says):
            source_of(form, store)
        source_of(form, store, split="validation")  # which trains nothing
        source_of(SegmentPairs(64, "sop", short_probability=0.0), store)
    else:
        assert source_of(form, store).table.label.mean() < 0.9


def test_config_errors_name_the_field():
    path = "lmjax.data.examples.SegmentPairs"
    form = build_typed({"type": path, "length": 64, "duplicates": 2}, "config.data.examples")
    assert form == SegmentPairs(64, duplicates=2)
    with pytest.raises(
        ConfigError, match=r"^config\.data\.examples\.length: must be at least 5, got 4"
    ):
        build(SegmentPairs, {"length": 4}, "config.data.examples")
    with pytest.raises(
        ConfigError,
        match=r"^config\.data\.examples\.short_probability: must lie in \[0, 1\], got 2",
    ):
        build(ElectraPairs, {"length": 9, "short_probability": 2.0}, "config.data.examples")
    with pytest.raises(ConfigError, match=r"^config\.data\.examples\.duplicates"):
        build(SegmentPairs, {"length": 9, "duplicates": 0}, "config.data.examples")
    with pytest.raises(ConfigError, match=r"^config\.training\.batch_size: the train split has 1 "):
        source_of(SegmentPairs(16, duplicates=1), make_store([[5]]), rows=2)
    with pytest.raises(ConfigError, match=r"^config\.training\.batch_size: the train split has 0 "):
        source_of(SegmentPairs(16), make_store([]), rows=2)
