"""The interface of example classes, and helpers that they share."""

from typing import NotRequired, Protocol, TypedDict

import numpy as np

from lmjax.errors import ConfigError


class Row(TypedDict):
    """One uncorrupted example; batches have the same arrays with a leading batch axis.

    An objective's `corrupt` adds further arrays.

    Attributes:
      tokens: int32 [length], token ids.
      token_types: int32 [length], 0 or 1 for BERT's A or B, 2 for XLNet's [CLS].
      segment_ids: int32 [length], number of the document in a packed row, from 1; 0 is padding.
        Tokens attend only to tokens with the same number.
      positions: int32 [length], rows of the position table.
      label: int32 [], 0 if the second text follows the first, otherwise 1. Rows of several
        examples have one for each, int32 [examples], and -1 where there is none.
      starts: int32 [examples], where the examples of such a row start; 0 where there is none.
      direction: int32 [], 1, or -1 if the text is reversed (XLNet's bi_data).
    """

    tokens: np.ndarray
    token_types: np.ndarray
    segment_ids: np.ndarray
    positions: np.ndarray
    label: NotRequired[np.ndarray]
    starts: NotRequired[np.ndarray]
    direction: NotRequired[np.ndarray]


class Store(Protocol):
    """The part of a token store that examples read; it contains no special tokens."""

    @property
    def tokens(self) -> np.ndarray:
        """uint16 or uint32 [tokens]."""

    @property
    def sentence_offsets(self) -> np.ndarray:
        """int64 [sentences + 1] into tokens."""

    @property
    def document_offsets(self) -> np.ndarray:
        """int64 [documents + 1] into sentences."""

    @property
    def document_token_offsets(self) -> np.ndarray:
        """int64 [documents + 1] into tokens."""


class Specials(Protocol):
    """The part of a vocabulary that examples read: the ids of special tokens."""

    @property
    def pad(self) -> int: ...
    @property
    def cls(self) -> int: ...
    @property
    def sep(self) -> int: ...
    @property
    def eod(self) -> int: ...


class Source(Protocol):
    """Random access to rows. Row i is a pure function of (store, settings, seed, i).

    `len(source)` rows form an epoch. Row i >= len(source) belongs to epoch i // len(source), for
    which a source may make new draws. `ordered` means that rows i, i + batch, i + 2 * batch, ...
    are contiguous text, so rows must not be shuffled.
    """

    ordered: bool

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Row: ...


class Examples(Protocol):
    """An example class: a frozen dataclass of settings that creates a source.

    If its rows have token types other than 0, `segment_types` is their number.
    """

    length: int

    def source(
        self, store: Store, vocabulary: Specials, *, seed: int, split: str, rows: int
    ) -> Source:
        """Returns the source; `rows` is the number of rows of a global batch."""


def sentences(store: Store) -> tuple[np.ndarray, np.ndarray]:
    """Returns the nonempty sentences and documents of a store.

    Returns:
      bounds: int64 [sentences + 1]; sentence s is tokens[bounds[s]:bounds[s + 1]].
      documents: int64 [documents + 1]; document d consists of the sentences documents[d] to
        documents[d + 1] - 1.
    """
    bounds = np.unique(store.sentence_offsets)
    documents = np.searchsorted(bounds, np.unique(store.document_token_offsets))
    return bounds, documents


def chunk_ends(
    bounds: np.ndarray, first: np.ndarray, target: np.ndarray | int, limit: np.ndarray
) -> np.ndarray:
    """Returns the ends of chunks that collect sentences until they have `target` tokens.

    Args:
      bounds: int64 [sentences + 1] into tokens.
      first: int64 [n], first sentence of each chunk.
      target: int64 [n] or int, >= 1.
      limit: int64 [n], one past the last sentence the chunk may take.

    Returns:
      int64 [n], one past the last sentence taken; every chunk takes at least one.
    """
    return np.minimum(np.searchsorted(bounds, bounds[first] + target), limit)


def check_rows(have: int, rows: int, split: str) -> None:
    """Raises ConfigError unless the split has enough rows for one batch."""
    if have < rows:
        field = "validation_corpus" if split == "validation" else "corpus"
        raise ConfigError(
            f"config.training.batch_size: the {split} split has {have} examples of"
            f" config.data.examples.length, fewer than a batch of {rows}; give a batch_size of at"
            f" most {max(have, 1)}, or more text as config.data.{field}"
        )
