"""Whole sentences of consecutive documents, packed into rows."""

import dataclasses
from typing import Annotated

import numpy as np

from lmjax.configuration import Interval, check_ranges
from lmjax.data.examples.concatenated import Concatenation
from lmjax.data.examples.source import Row, Specials, Store, check_rows


@dataclasses.dataclass(frozen=True)
class FullSentences:
    """[CLS] sentences [SEP], RoBERTa's FULL-SENTENCES (Liu et al. 2019, section 4.2).

    A row has as many whole sentences as fit. It continues with the next document after a [SEP], and
    attention crosses documents. A sentence longer than a row is cut into rows.

    Attributes:
      length: tokens per row, including special tokens and padding.
    """

    length: Annotated[int, Interval("[3, 2**20]")]  # [CLS] token [SEP]

    def __post_init__(self) -> None:
        check_ranges(self)

    def source(
        self, store: Store, vocabulary: Specials, *, seed: int, split: str, rows: int
    ) -> "FullSentencesSource":
        """Returns the source; see `lmjax.data.examples.source.Examples`.

        Raises:
          ConfigError: the corpus yields fewer rows than `rows`.
        """
        source = FullSentencesSource(self.length, store, vocabulary, seed, split)
        check_rows(len(source), rows, split)
        return source


class FullSentencesSource:
    """Rows of tokens, token_types, segment_ids and positions, the same in every epoch."""

    ordered = False

    def __init__(
        self, length: int, store: Store, vocabulary: Specials, seed: int, split: str
    ) -> None:
        self._length, self._vocabulary = length, vocabulary
        self._stream = Concatenation(
            store, vocabulary.sep, eod_first=False, seed=seed, split=split, epoch=0
        )
        starts = np.append(self._stream.sentence_starts(), len(self._stream))
        self._starts, self._ends = pack(starts, self._stream.starts, length - 2)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Row:
        index %= len(self)
        text = self._stream.read(self._starts[index], self._ends[index])
        count = len(text) + 2
        tokens = np.full(self._length, self._vocabulary.pad, np.int32)
        tokens[0], tokens[1 : count - 1], tokens[count - 1] = (
            self._vocabulary.cls,
            text,
            self._vocabulary.sep,
        )
        places = np.arange(self._length, dtype=np.int32)
        return {
            "tokens": tokens,
            "token_types": np.zeros(self._length, np.int32),
            "segment_ids": (places < count).astype(np.int32),
            "positions": places,
        }


def pack(bounds: np.ndarray, documents: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
    """Packs the sentences of a stream into rows of at most `room` tokens, in order.

    The separator at the end of a document does not count if a row ends with it, because every row
    ends with a separator of its own.

    Args:
      bounds: int64 [sentences + 1], where the sentences start, and the end of the stream.
      documents: int64 [documents + 1], likewise.

    Returns:
      int64 [rows] each: start and end of each row in the stream, without a last separator.
    """
    ends = bounds - np.isin(bounds, documents[1:])
    pieces = np.maximum(-(-(ends[1:] - bounds[:-1]) // room), 1)
    first = np.cumsum(pieces) - pieces
    within = np.arange(pieces.sum()) - np.repeat(first, pieces)
    bounds = np.append(np.repeat(bounds[:-1], pieces) + within * room, bounds[-1])
    ends = bounds - np.isin(bounds, documents[1:])
    # The row from piece i on stops before piece following[i].
    following = (np.searchsorted(ends, bounds[:-1] + room, side="right") - 1).tolist()
    rows, piece = [], 0
    while piece < len(following):
        rows.append((piece, following[piece]))
        piece = following[piece]
    chosen = np.array(rows, np.int64).reshape(-1, 2)
    return bounds[chosen[:, 0]], ends[chosen[:, 1]]
