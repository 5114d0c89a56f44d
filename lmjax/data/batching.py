"""Batches of rows of different lengths: which rows go together, how long and how many they are.

Each shape of a batch is compiled once, so that lengths and numbers of rows are rounded up to a few.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np


def power_of_two(count: int, smallest: int = 1) -> int:
    """The lowest power of two that is at least `count` and `smallest`, itself a power of two."""
    return max(smallest, 1 << (count - 1).bit_length())


def multiple_of(step: int, count: int) -> int:
    """The lowest multiple of `step` that is at least `count`."""
    return -(-count // step) * step


def first_that_holds(lengths: Sequence[int], count: int) -> int:
    """The first of ascending lengths that is at least `count`.

    Raises:
      ValueError: there is none.
    """
    for length in lengths:
        if length >= count:
            return length
    raise ValueError(f"{count} tokens do not fit into {lengths[-1]}")


def by_length(
    lengths: Sequence[int], rows: int, room: Callable[[int], int] | None = None
) -> Iterator[tuple[list[int], int]]:
    """Groups rows of similar length, the short ones first.

    Args:
      lengths: of the rows.
      rows: the most rows in a batch.
      room: length of the longest row of a batch -> how many rows fit into memory. A batch has at
        least one row.

    Yields:
      The indices of the rows of a batch, and the number of rows that its shape has: the last batch
      may have fewer.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    start = 0
    while start < len(order):
        count, longest = rows, 0
        # The longest row says how many fit, and how many fit says which is the longest.
        while room and longest != (longest := lengths[order[start : start + count][-1]]):
            count = max(1, min(count, room(longest)))
        yield order[start : start + count], count
        start += count


def pad(array: np.ndarray, length: int, fill: int, left: bool = False) -> np.ndarray:
    """Fills up the last axis to `length`, on the right or on the left."""
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
    """Pads the last axis of arrays to one length and stacks them: [rows, ..., length].

    Args:
      length: at least that of the longest; 0 takes it.
      rows: of the result; missing ones repeat the first. 0 = as many as there are arrays.
      left: pads on the left.
    """
    length = length or max(array.shape[-1] for array in arrays)
    padded = [pad(array, length, fill, left) for array in arrays]
    return np.stack(padded + [padded[0]] * (rows - len(padded)))


def real(
    lengths: Sequence[int], length: int = 0, *, rows: int = 0, left: bool = False
) -> np.ndarray:
    """[rows, length] bool: where rows of these lengths have tokens, as `stack` lays them out."""
    return stack([np.ones(n, bool) for n in lengths], length, False, rows=rows, left=left)
