"""Pairs of segments as BERT and ALBERT were trained on.

The algorithm is that of google-research/bert, create_pretraining_data.py
(`create_instances_from_document` and `truncate_seq_pair`), without the masking. Its
quirks are kept, for they shape the data: fewer than half of the pairs are "next",
since a chunk of one sentence always gets a random partner; the random document may,
after ten tries, be the current one; one target length is drawn per document and pass.
"""

import dataclasses
from typing import Annotated, ClassVar, Literal

import numpy as np

from lmjax.configuration import Interval, Probability, check_ranges
from lmjax.data.examples import stateless_random
from lmjax.data.examples.source import (
    Row,
    Specials,
    Store,
    check_rows,
    chunk_ends,
    pair_row,
    sentences,
)

# Numbers of a chunk's draws.
_SPLIT, _COIN, _CUT, _START, _CUT_FIRST, _CUT_SECOND, _OTHER = range(7)
_TRIES = 10


@dataclasses.dataclass(frozen=True)
class SegmentPairs:
    """[CLS] A [SEP] B [SEP] (Devlin et al. 2019, section 3.1 and appendix A.2).

    Attributes:
      length: tokens of a row, specials and padding included.
      next_sentence: 'nsp': B follows A (label 0) or comes from a random place (label 1),
        as in BERT. 'sop': A and B are consecutive, in order (label 0) or swapped
        (label 1), as in ALBERT (Lan et al. 2020, section 3.1). 'none': always
        consecutive, no label (the "No NSP" row of BERT's table 5). ALBERT's code gives a
        chunk of one sentence a random B; with 'sop' and 'none' such a chunk is cut in
        two at a random token instead, so that both segments are always of one text.
      duplicates: passes over the corpus, each drawn anew; together they make an epoch.
      short_probability: probability that a document is cut to a shorter target length,
        uniform from 2 up.
    """

    segment_types: ClassVar[int] = 2

    length: Annotated[int, Interval("[5, 2**20]")]  # [CLS] A [SEP] B [SEP]
    next_sentence: Literal["nsp", "sop", "none"] = "nsp"
    duplicates: Annotated[int, Interval("[1, 1000]")] = 10
    short_probability: Probability = 0.1

    def __post_init__(self) -> None:
        check_ranges(self)

    def source(
        self, store: Store, vocabulary: Specials, *, seed: int, split: str, rows: int
    ) -> "PairSource":
        """Draws the table of all pairs; see `lmjax.data.examples.source.Examples`.

        Raises:
          ConfigError: the corpus gives fewer pairs than `rows`.
        """
        table = pair_table(self, store, stateless_random.root(seed, split))
        check_rows(len(table.label), rows, split)
        return PairSource(self, store, vocabulary, table)


@dataclasses.dataclass(frozen=True)
class PairTable:
    """Token ranges of the segments of n pairs, already truncated."""

    first: np.ndarray  # [n, 2] int64: start and stop in store.tokens
    second: np.ndarray  # [n, 2] int64
    label: np.ndarray  # [n] int8


class PairSource:
    """The rows of a table of pairs: tokens, token_types, segment_ids, positions and label."""

    ordered = False

    def __init__(
        self, form: SegmentPairs, store: Store, vocabulary: Specials, table: PairTable
    ) -> None:
        self.table = table
        self._form, self._vocabulary = form, vocabulary
        self._tokens = np.asarray(store.tokens)

    def __len__(self) -> int:
        return len(self.table.label)

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
    """Draws the pairs of all passes over all documents, in the order of pass and document."""
    bounds, documents = sentences(store)
    room = form.length - 3
    chunks = _chunks(form, bounds, documents, root, room)
    first = np.stack([bounds[chunks.first], bounds[chunks.split]], axis=1)
    second = np.stack([bounds[chunks.split], bounds[chunks.stop]], axis=1)
    label = np.zeros(len(first), np.int8)
    keys = chunks.keys
    if form.next_sentence == "nsp":
        random = chunks.random
        wanted = (chunks.target - (first[:, 1] - first[:, 0]))[random]
        own = chunks.document[random]
        second[random] = _random_segments(bounds, documents, keys[random], own, wanted)
        label[random] = 1
    else:
        alone = chunks.stop - chunks.first == 1
        size = first[:, 1] - first[:, 0]
        keep = ~(alone & (size == 1))  # one token cannot be cut in two
        cut = first[:, 0] + stateless_random.integers(keys, _CUT, 1, size - 1)
        first[alone, 1] = second[alone, 0] = cut[alone]
        first, second, label, keys = first[keep], second[keep], label[keep], keys[keep]
        if form.next_sentence == "sop":
            swap = stateless_random.uniform(keys, _COIN) < 0.5
            first[swap], second[swap] = second[swap], first[swap]
            label[swap] = 1
    _truncate(first, second, room, keys)
    return PairTable(first, second, label)


@dataclasses.dataclass(frozen=True)
class _Chunks:
    """Runs of sentences of one document, each split in two; every array is [n]."""

    lane: np.ndarray  # int64: which document of which pass
    document: np.ndarray  # int64
    first: np.ndarray  # int64 into sentences
    split: np.ndarray  # int64 into sentences: where A ends
    stop: np.ndarray  # int64 into sentences
    random: np.ndarray  # bool: B is to come from elsewhere
    target: np.ndarray  # int64 tokens
    keys: np.ndarray  # uint64


def _chunks(
    form: SegmentPairs,
    bounds: np.ndarray,
    documents: np.ndarray,
    root: np.ndarray,
    room: int,
) -> _Chunks:
    """Walks all documents of all passes in step, one chunk of each at a time.

    Where a chunk begins depends on the draws for the chunk before, so that a document
    must be walked in order; but documents and passes are independent of each other.
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
        # A chunk of one sentence is all A: integers in [1, 0] gives 1.
        split = cursor + stateless_random.integers(chunk, _SPLIT, 1, size - 1)
        random = (size == 1) | (stateless_random.uniform(chunk, _COIN) < 0.5)
        found.append((lane, cursor, split, stop, random, target, chunk))
        # The sentences that a random B displaces are put back.
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
    """Returns int64 [n, 2]: token ranges of at least `wanted` tokens from other documents."""
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
    """Cuts pairs, in place, to `room` tokens together.

    The original cuts one token at a time from the longer segment (from the second where
    both are equal), from its front or its back with equal probability. Which segment
    is cut how often follows from the lengths alone, and the cuts at the front are a number
    of coins showing heads.
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
    """Returns the lengths left when the longer (the second if equal) is cut until both fit."""
    kept = np.minimum(first, np.maximum((room + 1) // 2, room - second))
    return kept, np.minimum(second, room - kept)
