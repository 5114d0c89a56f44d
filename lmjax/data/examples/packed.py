"""Documents packed into rows without padding."""

import dataclasses
import functools
from typing import Annotated

import numpy as np

from lmjax.configuration import Interval, check_ranges
from lmjax.data.examples.concatenated import Concatenation, stream_length
from lmjax.data.examples.source import Row, Specials, Store, check_rows


@dataclasses.dataclass(frozen=True)
class Packed:
    """[eod] text [eod] text ..., cut into rows of exactly `length` tokens.

    Documents come in an order drawn for each epoch; the few tokens that do not fill a
    last row are left out of that epoch. A document that is cut goes on in the next row of
    the epoch as a document of its own, its positions from 0.

    Attributes:
      length: tokens of a row.
      across_documents: attention may cross documents: `segment_ids` is 1 everywhere and
        positions run through the row, as GPT-2 and GPT-3 were trained (Brown et al. 2020,
        appendix B); else documents are numbered from 1 and positions restart in each.
    """

    length: Annotated[int, Interval("[2, 2**20]")]  # a token and its successor
    across_documents: bool = False

    def __post_init__(self) -> None:
        check_ranges(self)

    def source(
        self, store: Store, vocabulary: Specials, *, seed: int, split: str, rows: int
    ) -> "PackedSource":
        """Makes the source; see `lmjax.data.examples.source.Examples`.

        Raises:
          ConfigError: the corpus gives fewer rows than `rows`.
        """
        source = PackedSource(self, store, vocabulary, seed, split)
        check_rows(len(source), rows, split)
        return source


class PackedSource:
    """Rows of tokens, token_types, segment_ids and positions."""

    ordered = False

    def __init__(
        self, form: Packed, store: Store, vocabulary: Specials, seed: int, split: str
    ) -> None:
        self._form = form
        self._rows = stream_length(store) // form.length
        # Prefetching threads read across the end of an epoch: two of them are kept.
        self._epoch = functools.lru_cache(maxsize=2)(
            lambda epoch: Concatenation(
                store,
                vocabulary.eod,
                eod_first=True,
                seed=seed,
                split=split,
                epoch=epoch,
            )
        )

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, index: int) -> Row:
        epoch, row = divmod(index, self._rows)
        length = self._form.length
        stream, start = self._epoch(epoch), row * length
        owners = stream.owners(start, start + length)
        offsets = np.arange(length)
        if self._form.across_documents:
            segment_ids, positions = np.ones(length, np.int32), offsets
        else:
            segment_ids = owners - owners[0] + 1
            positions = offsets - np.maximum(stream.starts[owners] - start, 0)
        return {
            "tokens": stream.read(start, start + length, owners),
            "token_types": np.zeros(length, np.int32),
            "segment_ids": segment_ids.astype(np.int32),
            "positions": positions.astype(np.int32),
        }
