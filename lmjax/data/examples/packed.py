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
    """[eod] text [eod] text ..., split into rows of exactly `length` tokens.

    The order of documents is drawn for each epoch; the tokens of an incomplete last row are
    dropped. A document that crosses rows continues in the next row as a document of its own, with
    positions from 0.

    Attributes:
      length: tokens per row.
      across_documents: whether attention may cross documents. If so, `segment_ids` is 1 everywhere
        and positions continue through the row, as in GPT-2 and GPT-3 (Brown et al. 2020,
        appendix B). Otherwise, documents are numbered from 1 and positions restart in each.
    """

    length: Annotated[int, Interval("[2, 2**20]")]  # a token and its successor
    across_documents: bool = False

    def __post_init__(self) -> None:
        check_ranges(self)

    def source(
        self, store: Store, vocabulary: Specials, *, seed: int, split: str, rows: int
    ) -> "PackedSource":
        """Returns the source; see `lmjax.data.examples.source.Examples`.

        Raises:
          ConfigError: the corpus yields fewer rows than `rows`.
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
        # Two epochs are cached, since prefetching threads read across the end of an epoch.
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
