"""Estimation of n-gram models: counts in sorted arrays, and five kinds of smoothing.

'modified_kneser_ney', 'kneser_ney': interpolated, with three discounts per order or one (Chen &
  Goodman 1998 §4.1.6 and §2.7). Counts, discounts and the treatment of the ends of texts are those
  of kenlm's `lmplz` (Heafield et al. 2013).
'jelinek_mercer': interpolation of relative frequencies (Jelinek & Mercer 1980). The weights depend
  on the order and on the count of the context, in powers of two. EM estimates them on other text.
'katz': back-off with Good-Turing discounts of counts up to 5 (Katz 1987).
'stupid_backoff': relative frequencies, and 0.4 times the shorter context (Brants et al. 2007 §4).
  Its scores are no probabilities. A token that never occurs backs off once more, to 0.4 times
  the uniform probability.

The vocabulary is closed: all tokens of a tokenizer but the one that begins a text. A token that
never occurs gets what the empty context leaves for it. This is `lmplz --vocab_pad`, with as many
words as the tokenizer has.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from lmjax.errors import ConfigError
from lmjax.models.ngram import STUPID, NgramConfig, Smoothing, order_parameters

# Discounts of counts 1, 2 and more: kenlm's `--discount_fallback`.
FALLBACK = (0.5, 1.0, 1.5)
_MOST_DISCOUNTED = 5  # the largest count that Good-Turing discounts (Katz 1987)
_BUCKETS = 64  # of Jelinek-Mercer: the counts of contexts from 2 ** i on
_ROUNDS, _ENOUGH = 200, 1e-7  # of EM: the most rounds, and the least gain in nats per token
_LARGEST_WEIGHT = 0.9999  # leaves some probability for all tokens
_NO_MASS = 1e-9  # less probability than this for unseen tokens counts as none
_TINY = float(np.finfo(np.float32).tiny)

Texts = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Estimated:
    """An estimated model.

    Attributes:
      config: of the network.
      params: the network's parameters, as NumPy arrays.
      constants: by order, the lowest first: the discounts of Kneser-Ney, the factors of Katz for
        counts 1 to 5, or the weights of Jelinek-Mercer by the logarithm of the context's count.
      fell_back: the orders, counted from 1, that use `FALLBACK`.
    """

    config: NgramConfig
    params: dict[str, Any]
    constants: tuple[tuple[float, ...], ...]
    fell_back: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class _Order:
    """The distinct n-grams of one order, sorted by context and last token.

    Attributes:
      tokens: int32 [n-grams], the last token.
      starts: int64 [contexts + 1], the n-grams of a context, which is an n-gram of the order below.
      counts: int64 [n-grams].
      suffixes: int32 [n-grams], index of the n-gram without its first token in the order below.
      begins: bool [n-grams], whether the first token is the beginning of a text.
    """

    tokens: np.ndarray
    starts: np.ndarray
    counts: np.ndarray
    suffixes: np.ndarray
    begins: np.ndarray

    @property
    def contexts(self) -> np.ndarray:
        """int64 [n-grams], the index of the context of each n-gram."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sums values [n-grams] by context: float64 [contexts]."""
        return np.bincount(self.contexts, values, len(self.starts) - 1)


def estimate(
    texts: Texts,
    vocab_size: int,
    ends: tuple[int, int],
    *,
    order: int,
    smoothing: Smoothing = "modified_kneser_ney",
    discount_fallback: bool = False,
    held_out: Texts | None = None,
) -> Estimated:
    """Estimates an n-gram model.

    Args:
      texts: ids [tokens] of the concatenated texts, and [texts + 1] int, where each text starts
        and the last one ends.
      vocab_size: ids are 0 to vocab_size - 1.
      ends: the ids before and after every text; they may be the same.
      order: n of the longest n-grams.
      smoothing, discount_fallback: as in `NgramTraining`.
      held_out: other texts, for the weights of 'jelinek_mercer'.

    Raises:
      ConfigError: there is no text, a text contains an id of `ends`, the counts give no
        discounts, or `held_out` is missing.
    """
    begin, end = ends
    config = NgramConfig(vocab_size, order, begin, end, smoothing)
    orders = _count(*_padded(texts, ends), vocab_size, order)
    if smoothing in ("modified_kneser_ney", "kneser_ney"):
        orders = _with_adjusted_counts(orders)
    if smoothing == "jelinek_mercer":
        if held_out is None or len(held_out[1]) < 2:
            raise ConfigError("smoothing: 'jelinek_mercer' needs held-out text for its weights")
        constants = _weights(orders, *_padded(held_out, ends), vocab_size)
        fell_back: tuple[int, ...] = ()
    else:
        constants, fell_back = _discounts(orders, smoothing, discount_fallback)
    # The empty context has no tokens; below it, all predicted tokens are equally probable.
    predicted = vocab_size - (begin != end)
    p, log_probs, log_backoffs = np.full(1, 1 / predicted), [], []
    for n, grams in enumerate(orders, 1):
        p, left = _smoothed(grams, p[grams.suffixes], smoothing, constants[n - 1], predicted)
        if n == 1 and begin != end:
            p[begin] = 0.0
        log_probs.append(np.log(np.maximum(p, _TINY)).astype(np.float32))
        log_backoffs.append(np.log(np.maximum(left, _TINY)).astype(np.float32))
    params = {}
    for n, grams in enumerate(orders, 1):
        above = (orders[n].starts, log_probs[n]) if n < order else None
        params[f"order_{n}"] = order_parameters(
            log_probs[n - 1],
            grams.tokens if n > 1 else None,
            log_backoffs[n] if n < order else None,
            above,
        )
    return Estimated(config, params, tuple(tuple(map(float, c)) for c in constants), fell_back)


def _padded(texts: Texts, ends: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Puts the special tokens around every text.

    Returns:
      int32 [tokens], and [tokens] bool, whether the token is the beginning of a text.
    """
    tokens, offsets = np.asarray(texts[0]), np.asarray(texts[1])
    if len(offsets) < 2:
        raise ConfigError("an n-gram model needs at least one text; give more text")
    tokens = tokens[offsets[0] : offsets[-1]]
    for special in set(ends):
        if (tokens == special).any():
            raise ConfigError(f"a text contains id {special}, which marks the ends of texts")
    lengths = np.diff(offsets) + 2
    stops = np.cumsum(lengths)
    begins = np.zeros(stops[-1], bool)
    begins[stops - lengths] = True
    padded = np.zeros(stops[-1], np.int32)
    inside = ~begins
    inside[stops - 1] = False
    padded[inside] = tokens
    padded[stops - lengths], padded[stops - 1] = ends
    return padded, begins


def _count(padded: np.ndarray, begins: np.ndarray, vocab_size: int, order: int) -> list[_Order]:
    """Counts the n-grams of all orders; order 1 has all tokens, and not the beginnings."""
    if len(padded) >= 1 << 31:
        raise ConfigError("an n-gram model reads less than 2**31 tokens; give less text")
    orders = [
        _Order(
            np.arange(vocab_size, dtype=np.int32),
            np.array([0, vocab_size]),
            np.bincount(padded[~begins], minlength=vocab_size),
            np.zeros(vocab_size, np.int32),
            np.zeros(vocab_size, bool),
        )
    ]
    place = padded  # the n-gram that ends at each token, or -1
    for n in range(2, order + 1):
        ending = np.flatnonzero((place[:-1] >= 0) & ~begins[1:]).astype(np.int32) + np.int32(1)
        if not len(ending):
            raise ConfigError(f"config.order: no text has {n}-grams; lower it to {n - 1}")
        keys = place[ending - 1] * np.int64(vocab_size) + padded[ending]
        by_key = np.argsort(keys)
        keys, ending = keys[by_key], ending[by_key]
        del by_key
        first = np.flatnonzero(np.diff(keys, prepend=-1))
        counts = np.diff(first, append=len(keys))
        contexts, tokens = np.divmod(keys[first], vocab_size)
        del keys
        some = ending[first]
        sizes = np.bincount(contexts, minlength=len(orders[-1].tokens))
        orders.append(
            _Order(
                tokens.astype(np.int32),
                np.concatenate([[0], np.cumsum(sizes)]),
                counts,
                place[some],
                begins[some - n + 1],
            )
        )
        place = np.full(len(padded), -1, np.int32)
        place[ending] = np.repeat(np.arange(len(first), dtype=np.int32), counts)
    return orders


def _with_adjusted_counts(orders: Sequence[_Order]) -> list[_Order]:
    """Replaces the counts below the highest order by the numbers of distinct left neighbors.

    N-grams that begin a text have no left neighbor and keep their counts.
    """
    adjusted = []
    for grams, above in itertools.pairwise(orders):
        neighbors = np.bincount(above.suffixes, minlength=len(grams.tokens))
        counts = np.where(grams.begins, grams.counts, neighbors)
        adjusted.append(dataclasses.replace(grams, counts=counts))
    return [*adjusted, orders[-1]]


def _discounts(
    orders: Sequence[_Order], smoothing: Smoothing, fallback: bool
) -> tuple[list[tuple[float, ...]], tuple[int, ...]]:
    """Returns the constants of each order, and the orders that use `FALLBACK`."""
    rule = {
        "modified_kneser_ney": _modified_discounts,
        "kneser_ney": _single_discount,
        "katz": _good_turing,
    }.get(smoothing)
    if rule is None:
        return [()] * len(orders), ()
    constants, fell_back = [], []
    for n, grams in enumerate(orders, 1):
        few = np.minimum(grams.counts, _MOST_DISCOUNTED + 2)
        found = rule(np.bincount(few, minlength=_MOST_DISCOUNTED + 3)[: _MOST_DISCOUNTED + 2])
        if found is None:
            if not fallback:
                raise ConfigError(
                    f"config.order: the counts of {n}-grams give no discounts (too little text, or"
                    " too few rare tokens); lower it, or set config.discount_fallback"
                )
            fell_back.append(n)
        constants.append(FALLBACK if found is None else found)
    return constants, tuple(fell_back)


def _modified_discounts(n: np.ndarray) -> tuple[float, ...] | None:
    """Returns D1, D2 and D3+; n[k] is the number of n-grams with count k. None if not valid."""
    if not (n[1] and n[2] and n[3]):
        return None
    y = n[1] / (n[1] + 2 * n[2])
    found = tuple(k - (k + 1) * y * n[k + 1] / n[k] for k in (1, 2, 3))
    return found if all(0 <= d <= k for k, d in enumerate(found, 1)) else None


def _single_discount(n: np.ndarray) -> tuple[float, ...] | None:
    """Returns D (Kneser & Ney 1995; Ney et al. 1994), once for each kind of count."""
    return (n[1] / (n[1] + 2 * n[2]),) * 3 if n[1] and n[2] else None


def _good_turing(n: np.ndarray) -> tuple[float, ...] | None:
    """Returns Katz's factors d_r of the counts r from 1 to `_MOST_DISCOUNTED`."""
    k = _MOST_DISCOUNTED
    if not n[1 : k + 1].all():
        return None
    beyond = (k + 1) * n[k + 1] / n[1]
    if beyond >= 1:
        return None
    found = tuple(((r + 1) * n[r + 1] / n[r] / r - beyond) / (1 - beyond) for r in range(1, k + 1))
    return found if all(0 < d <= 1 for d in found) else None


def _smoothed(
    grams: _Order,
    lower: np.ndarray,
    smoothing: Smoothing,
    constants: tuple[float, ...],
    predicted: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Computes p of the n-grams of one order, and the back-off weights of their contexts.

    Args:
      lower: [n-grams] p of the last token in the shorter context.
      constants: of this order, see `Estimated`.
      predicted: number of tokens that can follow a context.

    Returns:
      float64 [n-grams] and [contexts]; the weight is 1 for contexts without n-grams.
    """
    counts, contexts, totals = grams.counts, grams.contexts, grams.sums(grams.counts)
    followed = totals > 0
    own = counts / np.maximum(totals, 1)[contexts]  # relative frequencies
    if smoothing == "jelinek_mercer":
        weights = np.where(followed, np.array(constants)[_bucket(totals)], 0.0)
        return weights[contexts] * own + (1 - weights)[contexts] * lower, 1 - weights
    if smoothing == "stupid_backoff":
        return np.where(counts > 0, own, STUPID * lower), np.full(len(totals), STUPID)
    if smoothing == "katz" and constants != FALLBACK:
        factors = np.array([1.0, *constants, 1.0])
        discount = counts * (1 - factors[np.minimum(counts, len(factors) - 1)])
    else:
        discount = np.array([0.0, *constants])[np.minimum(counts, 3)]
    freed = grams.sums(discount) / np.maximum(totals, 1)
    own -= discount / np.maximum(totals, 1)[contexts]
    if smoothing != "katz":
        left = np.where(followed, freed, 1.0)
        return own + left[contexts] * lower, left
    seen = counts > 0
    kinds = grams.sums(seen)
    # A context whose counts are all too large for a discount counts one token more, which stands
    # for the unseen ones (Doug Paul's rule in the CMU toolkit, Rosenfeld 1995).
    stuck = followed & (freed == 0) & (kinds < predicted)
    own = np.where(stuck[contexts], counts / (totals + 1)[contexts], own)
    freed = np.where(stuck, 1 / (totals + 1), freed)
    unseen = 1 - grams.sums(np.where(seen, lower, 0.0))
    # Without unseen tokens the discounts are given back.
    none = followed & ((kinds == predicted) | (unseen < _NO_MASS))
    own = np.where(none[contexts], own / np.maximum(1 - freed, _TINY)[contexts], own)
    left = np.where(followed, freed / np.maximum(unseen, _NO_MASS), 1.0)
    left = np.where(none, 0.0, left)
    return np.where(seen, own, left[contexts] * lower), left


def _bucket(totals: np.ndarray) -> np.ndarray:
    """Returns floor(log2(totals)), and 0 for 0."""
    return np.maximum(np.frexp(totals)[1] - 1, 0)


def _weights(
    orders: Sequence[_Order], padded: np.ndarray, begins: np.ndarray, vocab_size: int
) -> list[tuple[float, ...]]:
    """Estimates the weights of Jelinek-Mercer smoothing by EM on held-out text.

    A weight without held-out tokens is that of the nearest bucket of smaller counts.
    """
    predicted = np.flatnonzero(~begins)
    frequencies, buckets = [], []  # [held-out tokens] each; bucket -1: the context is not listed
    before = np.zeros(len(padded), np.int64)
    for n, grams in enumerate(orders, 1):
        totals = grams.sums(grams.counts)
        keys = grams.contexts * vocab_size + grams.tokens
        wanted = before * vocab_size + padded
        place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        found = (before >= 0) & (keys[place] == wanted)
        context = np.maximum(before, 0)
        frequency = np.where(found, grams.counts[place] / np.maximum(totals[context], 1), 0.0)
        bucket = np.where((before >= 0) & (totals[context] > 0), _bucket(totals[context]), -1)
        frequencies.append(frequency[predicted])
        buckets.append(bucket[predicted])
        place = np.where(found, place, -1)
        if n > 1:  # no longer context reaches across the beginning
            place[begins] = -1
        before = np.concatenate([[-1], place[:-1]])
    size = vocab_size - (padded[0] != padded[-1])
    weights = np.full((len(orders), _BUCKETS), 0.5)
    last = -np.inf
    for _ in range(_ROUNDS):
        p, parts, mixed = np.full(len(predicted), 1 / size), [], []
        for n, (frequency, bucket) in enumerate(zip(frequencies, buckets, strict=True)):
            weight = np.where(bucket >= 0, weights[n, bucket], 0.0)
            parts.append(weight * frequency)
            p = parts[-1] + (1 - weight) * p
            mixed.append(p)
        share = np.ones(len(predicted))
        for n in reversed(range(len(orders))):
            taken = share * parts[n] / mixed[n]
            known = buckets[n] >= 0
            asked = np.bincount(buckets[n][known], share[known], _BUCKETS)
            given = np.bincount(buckets[n][known], taken[known], _BUCKETS)
            new = np.divide(given, asked, out=np.full(_BUCKETS, np.nan), where=asked > 0)
            weights[n] = np.minimum(_filled(new), _LARGEST_WEIGHT)
            share = share - taken
        nats = float(np.log(p).mean())
        if nats - last < _ENOUGH:
            break
        last = nats
    return [tuple(row) for row in weights]


def _filled(values: np.ndarray) -> np.ndarray:
    """Replaces NaN by the nearest number before it, or else by the first one after it."""
    known = np.flatnonzero(~np.isnan(values))
    if not len(known):
        return np.full(len(values), 0.5)
    place = np.searchsorted(known, np.arange(len(values)), side="right") - 1
    return values[known[np.maximum(place, 0)]]
