"""Stateless random numbers that depend on their purpose, not on the order of draws.

A key is a 64-bit hash of (seed, split, duplicate, document, ...), and the n-th number of a key is
a hash of the key and n. Drawing for thousands of documents at once, in any order, gives the same
result as drawing for each alone. The hash is SplitMix64 (Steele, Lea and Flood 2014, "Fast
splittable pseudorandom number generators").
"""

import zlib

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def root(seed: int, split: str) -> np.ndarray:
    """Returns the key of a whole run: uint64 [1]."""
    return fold_in(fold_in(np.zeros(1, np.uint64), seed), zlib.crc32(split.encode()))


def generator(seed: int, split: str, *parts: int) -> np.random.Generator:
    """Returns a NumPy generator for (seed, split, parts), for use where speed does not matter."""
    return np.random.default_rng([seed, zlib.crc32(split.encode()), *parts])


def fold_in(keys: np.ndarray, data: np.ndarray | int) -> np.ndarray:
    """Returns new keys, uint64 [n]. keys: uint64 [n] or [1]; data: >= 0, [n] or int."""
    return _mix(_mix(keys) + (np.atleast_1d(data).astype(np.uint64) + np.uint64(1)) * _GOLDEN)


def uniform(keys: np.ndarray, number: int) -> np.ndarray:
    """Returns draw `number` of each key: float64 [n] in [0, 1)."""
    return (fold_in(keys, number) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def integers(
    keys: np.ndarray, number: int, low: np.ndarray | int, high: np.ndarray | int
) -> np.ndarray:
    """Returns int64 [n], uniform in [low, high], including both ends as in `random.randint`."""
    return low + (uniform(keys, number) * (np.asarray(high) - low + 1)).astype(np.int64)


def heads(keys: np.ndarray, number: int, flips: np.ndarray) -> np.ndarray:
    """Returns the number of heads in `flips` [n] fair coin flips: int64 [n]."""
    result = np.zeros(len(flips), np.int64)
    todo = np.flatnonzero(flips > 0)
    keys, left, word = fold_in(keys, number)[todo], flips[todo], 0
    while len(todo):
        bits = fold_in(keys, word) >> (64 - np.minimum(left, 64)).astype(np.uint64)
        result[todo] += np.bitwise_count(bits)
        more = left > 64
        todo, keys, left, word = todo[more], keys[more], left[more] - 64, word + 1
    return result


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * _FIRST
    x = (x ^ (x >> np.uint64(27))) * _SECOND
    return x ^ (x >> np.uint64(31))
