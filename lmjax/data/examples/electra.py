"""Segment pairs as in ELECTRA's pretraining: both from one text, without a label.

The algorithm follows google-research/electra, build_pretraining_dataset.py (`ExampleBuilder`).
"""

import dataclasses
from typing import Annotated, ClassVar

import numpy as np

from lmjax.configuration import Interval, Probability, check_ranges
from lmjax.data.examples import stateless_random
from lmjax.data.examples.bin_packing import share_rows
from lmjax.data.examples.pairs import PairsPerRow, pair_row
from lmjax.data.examples.source import (
    Row,
    Source,
    Specials,
    Store,
    check_rows,
    chunk_ends,
    sentences,
)

_SHORT, _TARGET, _SINGLE, _COIN = range(4)


@dataclasses.dataclass(frozen=True)
class ElectraPairs:
    """[CLS] A [SEP] B [SEP], or [CLS] A [SEP], from consecutive sentences.

    An example collects sentences until they reach the target length or the document ends. A
    sentence joins A as long as it fits in half of the target. The first one that does not fit
    joins A with probability 0.5 and starts B otherwise. As in the original, a later sentence that
    is short enough to fit in A still joins A, which slightly reorders the text. Tokens beyond
    `length` are dropped. The original draws the target for the next example, so the first example
    of a file always has full length; here, every example draws its own target.

    Attributes:
      length: tokens per row, including special tokens and padding.
      short_probability: probability of a target length drawn uniformly from 5 to `length`.
      single_segment_probability: probability of an example without B.
      pairs_per_row: how many examples may share a row, so that less of it is padding; 1 as
        published.
    """

    segment_types: ClassVar[int] = 2

    length: Annotated[int, Interval("[5, 2**20]")]  # [CLS] A [SEP] B [SEP]
    short_probability: Probability = 0.05
    single_segment_probability: Probability = 0.1
    pairs_per_row: PairsPerRow = 1

    def __post_init__(self) -> None:
        check_ranges(self)

    def source(
        self, store: Store, vocabulary: Specials, *, seed: int, split: str, rows: int
    ) -> Source:
        """Draws all examples; see `lmjax.data.examples.source.Examples`.

        Raises:
          ConfigError: the corpus gives fewer rows than `rows`.
        """
        source = share_rows(
            ElectraSource(self, store, vocabulary, stateless_random.root(seed, split)),
            vocabulary,
            length=self.length,
            most=self.pairs_per_row,
            seed=seed,
            split=split,
        )
        check_rows(len(source), rows, split)
        return source


class ElectraSource:
    """Rows of tokens, token_types, segment_ids and positions."""

    ordered = False

    def __init__(
        self, form: ElectraPairs, store: Store, vocabulary: Specials, root: np.ndarray
    ) -> None:
        self._form, self._vocabulary = form, vocabulary
        self._tokens = np.asarray(store.tokens)
        self._bounds, documents = sentences(store)
        self._first, self._stop, self._target, keys = _chunks(form, self._bounds, documents, root)
        self._single = stateless_random.uniform(keys, _SINGLE) < form.single_segment_probability
        self._coin = stateless_random.uniform(keys, _COIN) < 0.5

    def __len__(self) -> int:
        return len(self._first)

    @property
    def sizes(self) -> np.ndarray:
        """int64 [rows], the tokens before the padding, or one more if all of a text is in A."""
        text = self._bounds[self._stop] - self._bounds[self._first]
        return np.minimum(text + np.where(self._single, 2, 3), self._form.length)

    def __getitem__(self, index: int) -> Row:
        index %= len(self)
        bounds = self._bounds[self._first[index] : self._stop[index] + 1]
        text = self._tokens[bounds[0] : bounds[-1]]
        length = self._form.length
        if self._single[index]:
            first, second = text, text[:0]
        else:
            sizes = np.diff(bounds)
            aim = (int(self._target[index]) - 3) // 2
            in_first = np.repeat(split_sentences(sizes, aim, bool(self._coin[index])), sizes)
            first, second = text[in_first], text[~in_first]
        first = first[: length - 2]
        second = second[: max(0, length - len(first) - 3)]
        return pair_row(first, second, length, self._vocabulary)


def split_sentences(sizes: np.ndarray, aim: int, coin: bool) -> np.ndarray:
    """Returns which sentences, of `sizes` tokens, join the first segment: bool [sentences].

    One coin suffices: a sentence that overflows the first segment either fills it or starts the
    second, and in both cases no further coin is needed.
    """
    in_first = np.zeros(len(sizes), bool)
    first = second = 0
    for i, size in enumerate(sizes.tolist()):
        if not first or first + size < aim or (not second and first < aim and coin):
            in_first[i] = True
            first += size
        else:
            second += size
    return in_first


def _chunks(
    form: ElectraPairs, bounds: np.ndarray, documents: np.ndarray, root: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns the sentence range, target length and key of each example, each array [n]."""
    lane = np.arange(len(documents) - 1)
    keys = stateless_random.fold_in(root, lane)
    cursor, limit = documents[:-1], documents[1:]
    found = [(lane[:0], cursor[:0], cursor[:0], cursor[:0], keys[:0])]
    number = 0
    while len(lane):
        chunk = stateless_random.fold_in(keys, number)
        short = stateless_random.uniform(chunk, _SHORT) < form.short_probability
        target = np.where(
            short, stateless_random.integers(chunk, _TARGET, 5, form.length), form.length
        )
        stop = chunk_ends(bounds, cursor, target, limit)
        found.append((lane, cursor, stop, target, chunk))
        more = stop < limit
        lane, cursor, limit, keys = lane[more], stop[more], limit[more], keys[more]
        number += 1
    lane, first, last, target, chunk = map(np.concatenate, zip(*found, strict=True))
    order = np.argsort(lane, kind="stable")
    return first[order], last[order], target[order], chunk[order]
