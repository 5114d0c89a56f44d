"""The documents of a store as one long stream that is never held in memory."""

import numpy as np

from lmjax.data.examples import stateless_random
from lmjax.data.examples.source import Store, sentences


class Concatenation:
    """Documents in the order drawn for (seed, split, epoch), each with one `eod` token.

    Attributes:
      starts: int64 [documents + 1], start of each document (including its `eod`) in the stream;
        the last entry is the length of the stream.
      order: int64 [documents], document index at each place; empty documents are dropped and not
        counted.
    """

    def __init__(
        self,
        store: Store,
        eod: int,
        *,
        eod_first: bool,
        seed: int,
        split: str,
        epoch: int,
    ) -> None:
        """Lays out the stream; `eod_first` puts `eod` before each document instead of after."""
        self._tokens = np.asarray(store.tokens)
        self._eod, self._eod_first = eod, eod_first
        self._bounds, self._documents = sentences(store)
        offsets = self._bounds[self._documents]
        self.order = stateless_random.generator(seed, split, epoch).permutation(len(offsets) - 1)
        sizes = np.diff(offsets)[self.order] + 1
        self.starts = np.concatenate([[0], np.cumsum(sizes)])
        # Subtract this from a stream position to get the position in the store.
        self._shift = self.starts[:-1] + eod_first - offsets[:-1][self.order]

    def __len__(self) -> int:
        return int(self.starts[-1])

    def owners(self, start: int, stop: int) -> np.ndarray:
        """Returns the index in `order` of the document at each position: int64 [stop - start]."""
        low, high = np.searchsorted(self.starts, (start, stop - 1), side="right") - 1
        inner = np.searchsorted(
            self.starts[low + 1 : high + 1], np.arange(start, stop), side="right"
        )
        return low + inner

    def read(self, start: int, stop: int, owners: np.ndarray | None = None) -> np.ndarray:
        """Returns the tokens at positions start to stop - 1: int32 [stop - start]."""
        if owners is None:
            owners = self.owners(start, stop)
        positions = np.arange(start, stop)
        # At an `eod` the index is one off the document; its token is overwritten below.
        text = self._tokens.take(positions - self._shift[owners], mode="clip").astype(np.int32)
        if self._eod_first:
            text[positions == self.starts[owners]] = self._eod
        else:
            text[positions + 1 == self.starts[owners + 1]] = self._eod
        return text

    def sentence_starts(self) -> np.ndarray:
        """Returns the starts of sentences, int64 [sentences]; a final `eod` is part of the last."""
        counts = np.diff(self._documents)[self.order]
        before = np.cumsum(counts) - counts
        index = np.arange(counts.sum()) + np.repeat(
            self._documents[:-1][self.order] - before, counts
        )
        return self._bounds[index] + np.repeat(self._shift, counts)


def stream_length(store: Store) -> int:
    """Returns the length of the stream: all tokens plus one per document."""
    offsets = np.unique(store.document_token_offsets)
    return int(offsets[-1] - offsets[0]) + len(offsets) - 1
