"""Batching of rows of different lengths.

Each batch shape is compiled once, so lengths and numbers of rows are rounded up to a few values.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np


def power_of_two(count: int, smallest: int = 1) -> int:
    """The smallest power of two that is >= `count` and >= `smallest`, a power of two."""
    return max(smallest, 1 << (count - 1).bit_length())


def multiple_of(step: int, count: int) -> int:
    """The smallest multiple of `step` that is >= `count`."""
    return -(-count // step) * step


def first_that_holds(lengths: Sequence[int], count: int) -> int:
    """Returns the first of ascending lengths that is >= `count`.

    Raises:
      ValueError: all lengths are smaller.
    """
    for length in lengths:
        if length >= count:
            return length
    raise ValueError(f"{count} tokens do not fit in {lengths[-1]}")


def by_length(
    lengths: Sequence[int], rows: int, room: Callable[[int], int] | None = None
) -> Iterator[tuple[list[int], int]]:
    """Groups rows of similar length, short ones first.

    Args:
      lengths: lengths of the rows.
      rows: maximum number of rows in a batch.
      room: length of the longest row of a batch -> number of rows that fit in memory. A batch has
        at least one row.

    Yields:
      The indices of the rows of a batch, and the number of rows of its shape, which the last batch
      may not fill.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    start = 0
    while start < len(order):
        count, longest = rows, 0
        # The longest row determines how many rows fit, and that determines the longest row.
        while room and longest != (longest := lengths[order[start : start + count][-1]]):
            count = max(1, min(count, room(longest)))
        yield order[start : start + count], count
        start += count


def pad(array: np.ndarray, length: int, fill: int, left: bool = False) -> np.ndarray:
    """Pads the last axis to `length` with `fill`, on the right or on the left."""
    missing = length - array.shape[-1]
    sides = (missing, 0) if left else (0, missing)
    return np.pad(array, [(0, 0)] * (array.ndim - 1) + [sides], constant_values=fill)


def stack(
    arrays: Sequence[np.ndarray],
    length: int = 0,
    fill: int = 0,
    *,
    rows: int = 0,
    left: bool = False,
) -> np.ndarray:
    """Pads the last axis of arrays to the same length and stacks them: [rows, ..., length].

    Args:
      length: length of the result; 0 = the length of the longest array.
      fill: padding value.
      rows: rows of the result; missing rows repeat the first array. 0 = the number of arrays.
      left: whether to pad on the left.
    """
    length = length or max(array.shape[-1] for array in arrays)
    padded = [pad(array, length, fill, left) for array in arrays]
    return np.stack(padded + [padded[0]] * (rows - len(padded)))


def real(
    lengths: Sequence[int], length: int = 0, *, rows: int = 0, left: bool = False
) -> np.ndarray:
    """Returns where rows stacked by `stack` have tokens, not padding: [rows, length] bool."""
    return stack([np.ones(n, bool) for n in lengths], length, False, rows=rows, left=left)
