"""Several whole examples in one row, so that little of a batch is padding."""

from typing import Protocol

import numpy as np

from lmjax.data.examples import stateless_random
from lmjax.data.examples.source import Row, Source, Specials


class SizedSource(Source, Protocol):
    """A source of rows with padding that knows how long they are."""

    @property
    def sizes(self) -> np.ndarray:
        """int64 [rows], upper bounds of the number of tokens before the padding."""


def share_rows(
    source: SizedSource, vocabulary: Specials, *, length: int, most: int, seed: int, split: str
) -> Source:
    """Returns a source with up to `most` rows of `source` in each row of `length` tokens."""
    if most == 1:
        return source
    return BinPackedSource(source, vocabulary, length, most, seed, split)


class BinPackedSource:
    """Joins up to `most` rows of another source in one row; the order of the rows is random.

    `segment_ids` numbers the examples of a row from 1, positions restart in each, and there are
    `starts`. `label` has the shape [most].
    """

    ordered = False

    def __init__(
        self,
        source: SizedSource,
        vocabulary: Specials,
        length: int,
        most: int,
        seed: int,
        split: str,
    ) -> None:
        self._source, self._pad = source, vocabulary.pad
        self._length, self._most = length, most
        rng = stateless_random.generator(seed, split)
        self.members = bin_packing(np.minimum(source.sizes, length), length, most, rng)

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: int) -> Row:
        members = self.members[index % len(self)]
        rows = [self._source[i] for i in members[members >= 0].tolist()]
        row: Row = {
            "tokens": np.full(self._length, self._pad, np.int32),
            "token_types": np.zeros(self._length, np.int32),
            "segment_ids": np.zeros(self._length, np.int32),
            "positions": np.zeros(self._length, np.int32),
            "starts": np.zeros(self._most, np.int32),
        }
        start = 0
        for i, one in enumerate(rows):
            size = int(np.count_nonzero(one["segment_ids"]))
            stop = start + size
            row["tokens"][start:stop] = one["tokens"][:size]
            row["token_types"][start:stop] = one["token_types"][:size]
            row["positions"][start:stop] = one["positions"][:size]
            row["segment_ids"][start:stop] = i + 1
            row["starts"][i] = start
            start = stop
        if "label" in rows[0]:
            row["label"] = np.full(self._most, -1, np.int32)
            row["label"][: len(rows)] = [one["label"] for one in rows]
        return row


def bin_packing(sizes: np.ndarray, length: int, most: int, rng: np.random.Generator) -> np.ndarray:
    """Assigns examples to rows of `length` tokens, at most `most` to a row.

    Longest-pack-first histogram packing (Krell et al. 2021, "Efficient sequence packing without
    cross-contamination", section 3 and appendix): from the longest to the shortest, each example
    joins the fullest row that has room. Examples of equal size are treated together, so the time
    depends on `length` rather than on the number of examples.

    Args:
      sizes: int [n], each in [1, length].

    Returns:
      int64 [rows, most], the indices of the examples of each row, then -1. Every example occurs
      once. Which examples of a size share a row is random, and so is the order of the rows.
    """
    counts = np.bincount(sizes, minlength=length + 1)
    # Room that is left -> {sizes in a row: number of such rows}, of the rows that are not full.
    open_rows: list[dict[tuple[int, ...], int]] = [{} for _ in range(length + 1)]
    closed: dict[tuple[int, ...], int] = {}

    def put(row: tuple[int, ...], count: int) -> None:
        left = length - sum(row)
        place = closed if len(row) == most or not left else open_rows[left]
        place[row] = place.get(row, 0) + count

    for size in range(length, 0, -1):
        todo, room = int(counts[size]), size
        while todo and room <= length:
            if not open_rows[room]:
                room += 1
                continue
            row, available = open_rows[room].popitem()
            used = min(todo, available)
            if used < available:
                open_rows[room][row] = available - used
            put((*row, size), used)
            todo -= used
            room = size  # what was put back may have room for another one of this size
        while todo:
            # New rows. Later ones may join them, and those of this size come first.
            fit = min(most, length // size, todo)
            rows = todo // fit
            put((size,) * fit, rows)
            todo -= rows * fit
    for unfilled in open_rows:
        closed |= unfilled
    # The examples of each size in a random order.
    order = rng.permutation(len(sizes))
    order = order[np.argsort(sizes[order], kind="stable")]
    next_of_size = np.cumsum(counts) - counts
    found = np.full((sum(closed.values()), most), -1, np.int64)
    start = 0
    for row, count in closed.items():
        for column, size in enumerate(row):
            first = int(next_of_size[size])
            found[start : start + count, column] = order[first : first + count]
            next_of_size[size] += count
        start += count
    return rng.permutation(found)
