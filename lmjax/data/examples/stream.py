"""Contiguous streams of segment pairs, for memory across steps, as in XLNet.

The algorithm follows zihangdai/xlnet, data_utils.py (`create_tfrecords` and `_split_a_and_b`),
without the masking. The original shuffles documents per file.
"""

import dataclasses
import functools
from typing import Annotated, ClassVar

import numpy as np

from lmjax.configuration import Interval, PositiveInt, check_ranges
from lmjax.data.examples import stateless_random
from lmjax.data.examples.concatenated import Concatenation, stream_length
from lmjax.data.examples.pairs import kept_lengths
from lmjax.data.examples.source import Row, Specials, Store, check_rows
from lmjax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class SegmentStream:
    """`reuse_length` tokens of running text, then A [SEP] B [SEP] [CLS] (Yang et al. 2019, 2.5).

    The documents, each followed by `eod`, form one stream, which is split into as many contiguous
    texts as a batch has rows. Row r of step i starts i * reuse_length tokens into its text, so
    memory of the running text carries over from step to step. A begins right after the running
    text and ends at the end of a sentence. B follows A or, with probability 0.5 (or if no sentence
    ends in A's range), comes from a random place in the same text. Every epoch draws a new order
    of documents.

    Attributes:
      length: tokens per row; rows have no padding.
      reuse_length: tokens of running text, and the offset between consecutive rows.
      bidirectional: whether the second half of the batch is the reversed text of the first half.
    """

    segment_types: ClassVar[int] = 3

    length: Annotated[int, Interval("[6, 2**20]")]  # running text and A [SEP] B [SEP] [CLS]
    reuse_length: PositiveInt
    bidirectional: bool = False

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.reuse_length >= self.length:
            raise ConfigError(
                f"reuse_length: {self.reuse_length} is not less than length {self.length}; "
                f"length // 2 is usual"
            )
        if self.length - self.reuse_length < 5:
            raise ConfigError(
                f"reuse_length: {self.reuse_length} leaves no room in {self.length} for "
                f"A [SEP] B [SEP] [CLS]; use at most length - 5"
            )

    def source(
        self, store: Store, vocabulary: Specials, *, seed: int, split: str, rows: int
    ) -> "StreamSource":
        """Returns the source; see `lmjax.data.examples.source.Examples`.

        Raises:
          ConfigError: the corpus does not fill one batch, or `rows` is odd although rows come in
            pairs.
        """
        if self.bidirectional and rows % 2:
            raise ConfigError(
                f"config.training.batch_size: {rows} is odd, but bidirectional streams need "
                f"pairs of rows; use an even batch_size"
            )
        source = StreamSource(self, store, vocabulary, seed, split, rows)
        check_rows(len(source), rows, split)
        return source


@dataclasses.dataclass(frozen=True)
class _Epoch:
    stream: Concatenation
    # Sentence ends in the text of each row of the batch: int64, sorted, in (0, size).
    cuts: list[np.ndarray]


class StreamSource:
    """Rows of tokens, token_types, segment_ids, positions and, if bidirectional, direction.

    Row r of step i has the index i * rows + r.
    """

    ordered = True

    def __init__(
        self,
        form: SegmentStream,
        store: Store,
        vocabulary: Specials,
        seed: int,
        split: str,
        rows: int,
    ) -> None:
        self._form, self._store, self._vocabulary = form, store, vocabulary
        self._seed, self._split, self._rows = seed, split, rows
        self._texts = rows // 2 if form.bidirectional else rows
        self._size = stream_length(store) // self._texts
        self._steps = max(0, (self._size - form.length) // form.reuse_length + 1)
        # Two epochs are cached, since prefetching threads read across the end of an epoch.
        self._epoch = functools.lru_cache(maxsize=2)(self._lay_out)

    def __len__(self) -> int:
        return self._steps * self._rows

    def __getitem__(self, index: int) -> Row:
        step, row = divmod(index, self._rows)
        epoch, step = divmod(step, self._steps)
        laid, form = self._epoch(epoch), self._form
        start = step * form.reuse_length
        split = start + form.reuse_length
        room = form.length - form.reuse_length - 3
        rng = stateless_random.generator(self._seed, self._split, epoch, step, row)
        (_, a_stop), (b, b_stop) = split_a_and_b(laid.cuts[row], self._size, split, room, rng)
        # The running text and A are adjacent, so one read covers both.
        before = self._read(laid.stream, row, start, a_stop)
        after = self._read(laid.stream, row, b, b_stop)
        sep, cls = self._vocabulary.sep, self._vocabulary.cls
        tokens = np.concatenate([before, [sep], after, [sep, cls]]).astype(np.int32)
        token_types = np.zeros(form.length, np.int32)
        token_types[len(before) + 1 : -1] = 1
        token_types[-1] = 2
        result: Row = {
            "tokens": tokens,
            "token_types": token_types,
            "segment_ids": np.ones(form.length, np.int32),
            "positions": np.arange(form.length, dtype=np.int32),
        }
        if form.bidirectional:
            result["direction"] = np.asarray(1 if row < self._texts else -1, np.int32)
        return result

    def _lay_out(self, epoch: int) -> _Epoch:
        stream = Concatenation(
            self._store,
            self._vocabulary.eod,
            eod_first=False,
            seed=self._seed,
            split=self._split,
            epoch=epoch,
        )
        starts, size = stream.sentence_starts(), self._size
        edges = np.arange(self._texts) * size
        lows = np.searchsorted(starts, edges, side="right")
        highs = np.searchsorted(starts, edges + size)
        cuts = [starts[low:high] - edge for low, high, edge in zip(lows, highs, edges, strict=True)]
        if self._form.bidirectional:
            cuts += [(size - x)[::-1] for x in cuts]
        return _Epoch(stream, cuts)

    def _read(self, stream: Concatenation, row: int, start: int, stop: int) -> np.ndarray:
        edge = row % self._texts * self._size
        if row < self._texts:
            return stream.read(edge + start, edge + stop)
        end = edge + self._size
        return stream.read(end - stop, end - start)[::-1]


def split_a_and_b(
    cuts: np.ndarray, size: int, begin: int, room: int, rng: np.random.Generator
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Draws A, which starts at `begin`, and B, with exactly `room` tokens in total.

    Args:
      cuts: int64, sorted, sentence ends in (0, size).
      size: length of the text; begin + room < size.
      room: at least 2.

    Returns:
      (start, stop) of A and of B.
    """
    low = int(np.searchsorted(cuts, begin, side="right"))
    high = int(np.searchsorted(cuts, begin + room))  # cuts[low:high] are in (begin, begin + room)
    end = int(cuts[high]) if high < len(cuts) else size
    a_stop = int(cuts[rng.integers(low, high)]) if low < high else end
    if low == high or rng.random() < 0.5:
        least = max(1, room - (a_stop - begin))
        b = int(rng.integers(0, size - least))
        b_stop = b + least
        # Extend to whole sentences. The original avoids the last token, which has no next token
        # as its target.
        before = int(np.searchsorted(cuts, b, side="right"))
        after = int(np.searchsorted(cuts, b_stop))
        b = int(cuts[before - 1]) if before else 0
        b_stop = min(int(cuts[after]) if after < len(cuts) else size, size - 1)
    else:
        b, b_stop = a_stop, end
    # Excess tokens are removed only from the right, from the longer (B if equal).
    a_kept, b_kept = kept_lengths(np.asarray(a_stop - begin), np.asarray(b_stop - b), room)
    return (begin, begin + int(a_kept)), (b, b + int(b_kept))
