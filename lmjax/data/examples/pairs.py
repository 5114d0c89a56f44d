"""Segment pairs as in the pretraining of BERT and ALBERT.

The algorithm follows google-research/bert, create_pretraining_data.py
(`create_instances_from_document` and `truncate_seq_pair`), without the masking. Its quirks are
kept because they shape the data: fewer than half of the pairs are "next", since a chunk of one
sentence always gets a random partner; after ten tries, the random document may be the current
one; one target length is drawn per document and pass.
"""

import dataclasses
from typing import Annotated, ClassVar, Literal

import numpy as np

from lmjax.configuration import Interval, Probability, check_ranges
from lmjax.data.examples import stateless_random
from lmjax.data.examples.bin_packing import share_rows
from lmjax.data.examples.source import (
    Row,
    Source,
    Specials,
    Store,
    check_rows,
    chunk_ends,
    sentences,
)
from lmjax.errors import ConfigError

# Indices of the random draws of a chunk.
_SPLIT, _COIN, _CUT, _START, _CUT_FIRST, _CUT_SECOND, _OTHER = range(7)
_TRIES = 10
_LARGEST_SHARE = 0.9  # of one label


PairsPerRow = Annotated[int, Interval("[1, 100]")]


@dataclasses.dataclass(frozen=True)
class SegmentPairs:
    """[CLS] A [SEP] B [SEP] (Devlin et al. 2019, section 3.1 and appendix A.2).

    Attributes:
      length: tokens per row, including special tokens and padding.
      next_sentence: 'nsp': B follows A (label 0) or comes from a random place (label 1), as in
        BERT. 'sop': A and B are consecutive, in order (label 0) or swapped (label 1), as in ALBERT
        (Lan et al. 2020, section 3.1). 'none': A and B are consecutive, without a label (the "No
        NSP" row of BERT's table 5). ALBERT's code gives a chunk of one sentence a random B; here,
        'sop' and 'none' split such a chunk at a random token, so that both segments always come
        from one text.
      duplicates: number of passes over the corpus with separate draws; together they form an epoch.
      short_probability: probability that a document uses a shorter target length, drawn uniformly
        from 2 on.
      pairs_per_row: how many pairs may share a row, so that less of it is padding; 1 as published.
    """

    segment_types: ClassVar[int] = 2

    length: Annotated[int, Interval("[5, 2**20]")]  # [CLS] A [SEP] B [SEP]
    next_sentence: Literal["nsp", "sop", "none"] = "nsp"
    duplicates: Annotated[int, Interval("[1, 1000]")] = 10
    short_probability: Probability = 0.1
    pairs_per_row: PairsPerRow = 1

    def __post_init__(self) -> None:
        check_ranges(self)

    def source(
        self, store: Store, vocabulary: Specials, *, seed: int, split: str, rows: int
    ) -> Source:
        """Draws all pairs; see `lmjax.data.examples.source.Examples`.

        Raises:
          ConfigError: the corpus yields fewer rows than `rows`, or nearly all training pairs have
            the same label.
        """
        table = pair_table(self, store, stateless_random.root(seed, split))
        source = share_rows(
            PairSource(self, store, vocabulary, table),
            vocabulary,
            length=self.length,
            most=self.pairs_per_row,
            seed=seed,
            split=split,
        )
        check_rows(len(source), rows, split)
        if self.next_sentence == "nsp" and split == "train":
            _check_labels(table, store)
        return source


@dataclasses.dataclass(frozen=True)
class PairTable:
    """Token ranges of the truncated segments of n pairs."""

    first: np.ndarray  # [n, 2] int64: start and stop in store.tokens
    second: np.ndarray  # [n, 2] int64
    label: np.ndarray  # [n] int8
    alone: np.ndarray  # [n] bool, whether the text had one sentence, so that 'nsp' has no choice


class PairSource:
    """Rows of pairs: tokens, token_types, segment_ids, positions and label."""

    ordered = False

    def __init__(
        self, form: SegmentPairs, store: Store, vocabulary: Specials, table: PairTable
    ) -> None:
        self.table = table
        self._form, self._vocabulary = form, vocabulary
        self._tokens = np.asarray(store.tokens)

    def __len__(self) -> int:
        return len(self.table.label)

    @property
    def sizes(self) -> np.ndarray:
        """int64 [rows], the number of tokens before the padding."""
        first = self.table.first[:, 1] - self.table.first[:, 0]
        second = self.table.second[:, 1] - self.table.second[:, 0]
        return first + second + 2 + (second > 0)

    def __getitem__(self, index: int) -> Row:
        index %= len(self)
        (a, a_stop), (b, b_stop) = self.table.first[index], self.table.second[index]
        row = pair_row(
            self._tokens[a:a_stop],
            self._tokens[b:b_stop],
            self._form.length,
            self._vocabulary,
        )
        if self._form.next_sentence != "none":
            row["label"] = np.asarray(self.table.label[index], np.int32)
        return row


def pair_table(form: SegmentPairs, store: Store, root: np.ndarray) -> PairTable:
    """Draws the pairs of all passes over all documents, ordered by pass and document."""
    bounds, documents = sentences(store)
    room = form.length - 3
    chunks = _chunks(form, bounds, documents, root, room)
    first = np.stack([bounds[chunks.first], bounds[chunks.split]], axis=1)
    second = np.stack([bounds[chunks.split], bounds[chunks.stop]], axis=1)
    label = np.zeros(len(first), np.int8)
    keys, alone = chunks.keys, chunks.stop - chunks.first == 1
    if form.next_sentence == "nsp":
        random = chunks.random
        wanted = (chunks.target - (first[:, 1] - first[:, 0]))[random]
        own = chunks.document[random]
        second[random] = _random_segments(bounds, documents, keys[random], own, wanted)
        label[random] = 1
    else:
        size = first[:, 1] - first[:, 0]
        keep = ~(alone & (size == 1))  # a single token cannot be split
        cut = first[:, 0] + stateless_random.integers(keys, _CUT, 1, size - 1)
        first[alone, 1] = second[alone, 0] = cut[alone]
        first, second, label, keys, alone = (x[keep] for x in (first, second, label, keys, alone))
        if form.next_sentence == "sop":
            swap = stateless_random.uniform(keys, _COIN) < 0.5
            first[swap], second[swap] = second[swap], first[swap]
            label[swap] = 1
    _truncate(first, second, room, keys)
    return PairTable(first, second, label, alone)


def _check_labels(table: PairTable, store: Store) -> None:
    """Raises ConfigError if next-sentence prediction would learn to say "not next" always."""
    # The others are a coin each. This is the expected share, since a few coins can be equal.
    random = (1 + table.alone.mean()) / 2 if len(table.alone) else 0
    if random > _LARGEST_SHARE:
        each = (len(store.sentence_offsets) - 1) / max(len(store.document_offsets) - 1, 1)
        raise ConfigError(
            f"config.data.examples.next_sentence: {random:.1%} of the training pairs would have the"
            f" label 'not next', since {table.alone.mean():.1%} of the chunks of"
            f" config.data.examples.length have only one sentence (documents have {each:.1f});"
            " use 'sop', or 'none' with config.objective.sentence_prediction=False, or more"
            " sentences in a chunk: a larger length, or a line break after each sentence of the"
            " corpus"
        )


@dataclasses.dataclass(frozen=True)
class _Chunks:
    """Runs of sentences of one document, each split into two parts; all arrays are [n]."""

    lane: np.ndarray  # int64, index of (pass, document)
    document: np.ndarray  # int64
    first: np.ndarray  # int64 into sentences
    split: np.ndarray  # int64 into sentences, end of A
    stop: np.ndarray  # int64 into sentences
    random: np.ndarray  # bool, whether B comes from a random place
    target: np.ndarray  # int64 tokens
    keys: np.ndarray  # uint64


def _chunks(
    form: SegmentPairs,
    bounds: np.ndarray,
    documents: np.ndarray,
    root: np.ndarray,
    room: int,
) -> _Chunks:
    """Processes all documents of all passes in parallel, one chunk of each at a time.

    The start of a chunk depends on the draws for the previous chunk, so each document must be
    processed in order, but documents and passes are independent.
    """
    count = len(documents) - 1
    lane = np.arange(count * form.duplicates)
    document = lane % max(count, 1)
    keys = stateless_random.fold_in(stateless_random.fold_in(root, lane // max(count, 1)), document)
    short = stateless_random.uniform(keys, 0) < form.short_probability
    target = np.where(short, stateless_random.integers(keys, 1, 2, room), room)
    cursor, limit = documents[document], documents[document + 1]
    found: list[tuple[np.ndarray, ...]] = []
    number = 2
    while len(lane):
        stop = chunk_ends(bounds, cursor, target, limit)
        size = stop - cursor
        chunk = stateless_random.fold_in(keys, number)
        # A chunk of one sentence is entirely A: drawing from [1, 0] gives 1.
        split = cursor + stateless_random.integers(chunk, _SPLIT, 1, size - 1)
        random = (size == 1) | (stateless_random.uniform(chunk, _COIN) < 0.5)
        found.append((lane, cursor, split, stop, random, target, chunk))
        # Sentences replaced by a random B are reused for the next chunk.
        cursor = np.where(random, split, stop) if form.next_sentence == "nsp" else stop
        more = cursor < limit
        if not more.all():
            lane, cursor, limit, target, keys = (
                x[more] for x in (lane, cursor, limit, target, keys)
            )
        number += 1
    if not found:
        empty = np.zeros(0, np.int64)
        return _Chunks(empty, empty, empty, empty, empty, empty > 0, empty, empty.astype(np.uint64))
    lane, first, split, stop, random, target, chunk = map(np.concatenate, zip(*found, strict=True))
    order = np.argsort(lane, kind="stable")
    lane = lane[order]
    return _Chunks(
        lane,
        lane % count,
        first[order],
        split[order],
        stop[order],
        random[order],
        target[order],
        chunk[order],
    )


def _random_segments(
    bounds: np.ndarray,
    documents: np.ndarray,
    keys: np.ndarray,
    own: np.ndarray,
    wanted: np.ndarray,
) -> np.ndarray:
    """Draws ranges of at least `wanted` tokens in other documents: int64 [n, 2]."""
    last = len(documents) - 2
    other = stateless_random.integers(keys, _OTHER, 0, last)
    for attempt in range(1, _TRIES):
        same = np.flatnonzero(other == own)
        if not len(same):
            break
        other[same] = stateless_random.integers(keys[same], _OTHER + attempt, 0, last)
    limit = documents[other + 1]
    start = stateless_random.integers(keys, _START, documents[other], limit - 1)
    stop = chunk_ends(bounds, start, np.maximum(wanted, 1), limit)
    return np.stack([bounds[start], bounds[stop]], axis=1)


def _truncate(first: np.ndarray, second: np.ndarray, room: int, keys: np.ndarray) -> None:
    """Truncates pairs, in place, to a total of `room` tokens.

    The original removes one token at a time from the longer segment (the second if both have
    equal length), from its front or back with equal probability. The number of tokens removed from
    each segment depends only on the lengths, and the number removed from the front is binomial.
    """
    first_kept, second_kept = kept_lengths(
        first[:, 1] - first[:, 0], second[:, 1] - second[:, 0], room
    )
    for ranges, kept, number in (
        (first, first_kept, _CUT_FIRST),
        (second, second_kept, _CUT_SECOND),
    ):
        ranges[:, 0] += stateless_random.heads(keys, number, ranges[:, 1] - ranges[:, 0] - kept)
        ranges[:, 1] = ranges[:, 0] + kept


def kept_lengths(first: np.ndarray, second: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the lengths after truncating the longer (the second if equal) until both fit."""
    kept = np.minimum(first, np.maximum((room + 1) // 2, room - second))
    return kept, np.minimum(second, room - kept)


def pair_row(first: np.ndarray, second: np.ndarray, length: int, vocabulary: Specials) -> Row:
    """Builds [CLS] first [SEP] second [SEP] padding, or [CLS] first [SEP] padding.

    Args:
      first: [n] token ids.
      second: [m] token ids, m may be 0.

    Returns:
      tokens, token_types, segment_ids, positions: int32 [length].
    """
    tokens = np.full(length, vocabulary.pad, np.int32)
    token_types = np.zeros(length, np.int32)
    segment_ids = np.zeros(length, np.int32)
    end = len(first) + 2
    tokens[0] = vocabulary.cls
    tokens[1 : end - 1] = first
    tokens[end - 1] = vocabulary.sep
    if len(second):
        start, end = end, end + len(second) + 1
        tokens[start : end - 1] = second
        tokens[end - 1] = vocabulary.sep
        token_types[start:end] = 1
    segment_ids[:end] = 1
    positions = np.arange(length, dtype=np.int32)
    return {
        "tokens": tokens,
        "token_types": token_types,
        "segment_ids": segment_ids,
        "positions": positions,
    }
