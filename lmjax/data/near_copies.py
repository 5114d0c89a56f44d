"""Groups of texts that are near copies of each other."""

import itertools
import re
from collections.abc import Sequence

import numpy as np
import scipy.sparse
import scipy.sparse.csgraph

_PAIRS_AT_ONCE = 20_000
_WORD = re.compile(r"\w+")


def near_copy_groups(
    texts: Sequence[str], *, similarity: float = 0.5, shingle: int = 5
) -> np.ndarray:
    """Returns the number of the group of each text: int [texts].

    Two texts are near copies if the Jaccard similarity of their sets of `shingle` consecutive
    words, in lowercase and without punctuation, is at least `similarity`. Groups are the connected
    components of this relation. The result is exact: the prefix filter (Chaudhuri et al. 2006, "A
    primitive operator for similarity joins in data cleaning") misses no candidate, and all
    candidates are compared.
    """
    shingles, owners = _shingles(texts, shingle)
    kinds = int(shingles.max(initial=0)) + 1
    # Each shingle once per text; the rarest ones of all texts have the lowest numbers.
    frequency = np.bincount(_distinct(owners * kinds + shingles) % kinds, minlength=kinds)
    rank = np.empty(kinds, np.int64)
    rank[np.argsort(frequency, kind="stable")] = np.arange(kinds)
    row, column = np.divmod(_distinct(owners * kinds + rank[shingles]), kinds)
    size = np.bincount(row, minlength=len(texts))
    first = np.cumsum(size) - size
    shape = (len(texts), kinds)
    sets = scipy.sparse.csr_array((np.ones(len(row), np.int32), (row, column)), shape)
    # Similar texts share one of these: without them, too few shingles are left.
    needed = np.ceil(similarity * size).astype(np.int64)
    early = np.arange(len(row)) - first[row] <= (size - needed)[row]
    rare = scipy.sparse.csr_array(
        (np.ones(early.sum(), np.int32), (row[early], column[early])), shape
    )
    one, two = scipy.sparse.triu(rare @ rare.T, 1).nonzero()
    comparable = np.minimum(size[one], size[two]) >= similarity * np.maximum(size[one], size[two])
    one, two = one[comparable], two[comparable]
    shared = np.zeros(len(one), np.int64)
    for begin in range(0, len(one), _PAIRS_AT_ONCE):
        part = slice(begin, begin + _PAIRS_AT_ONCE)
        shared[part] = sets[one[part]].multiply(sets[two[part]]).sum(axis=1)
    near = shared >= similarity * (size[one] + size[two] - shared)
    graph = scipy.sparse.coo_array((np.ones(near.sum()), (one[near], two[near])), (len(texts),) * 2)
    return scipy.sparse.csgraph.connected_components(graph, directed=False)[1]


def _distinct(values: np.ndarray) -> np.ndarray:
    """Sorts int64 values >= 0 and drops repetitions; np.unique hashes, which is slower here."""
    values = np.sort(values)
    return values[np.diff(values, prepend=-1) > 0]


def _shingles(texts: Sequence[str], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns a number for each run of `size` words, equal for equal runs, and its text."""
    split = [_WORD.findall(text.lower()) for text in texts]
    number = {word: i for i, word in enumerate(dict.fromkeys(itertools.chain(*split)))}
    words = np.array([number[word] for word in itertools.chain(*split)], np.int64)
    runs = words
    for place in range(1, size):
        longer = runs[:-1] * max(len(number), 1) + words[place:]
        runs = np.unique(longer, return_inverse=True)[1].reshape(-1)
    text = np.repeat(np.arange(len(texts)), [len(words) for words in split])
    whole = text[: len(runs)] == text[size - 1 :]
    return runs[whole], text[: len(runs)][whole]
