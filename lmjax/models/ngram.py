"""An n-gram model with interpolated modified Kneser-Ney smoothing (Chen & Goodman 1999 §4.1.6).

It follows kenlm's `lmplz` (Heafield et al. 2013) with one difference: the vocabulary is closed and
consists of all tokens of a tokenizer. The lowest order therefore interpolates with
1 / (tokens + 1), counting the end of a sentence, and there is no unknown word.
"""

import dataclasses
from typing import Self

import numpy as np

from lmjax.errors import ConfigError

# Discounts of n-grams seen once, twice and more often, used if the counts give none: kenlm's
# `--discount_fallback`.
FALLBACK = (0.5, 1.0, 1.5)


@dataclasses.dataclass(frozen=True, eq=False)
class _Order:
    """The n-grams of one order. An n-gram is identified by its index in `keys`.

    Attributes:
      keys: int64 [n-grams], ascending: index of the first n - 1 tokens * base + last token.
      discounted: float64 [n-grams], (a - D(a)) / sum of a over the context.
      left: float64 [contexts], probability mass freed by the discounts (gamma); 1 for contexts
        without continuation.
    """

    keys: np.ndarray
    discounted: np.ndarray
    left: np.ndarray

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Returns the index of each key, or -1 if it is missing."""
        place = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[place] == keys, place, -1)


@dataclasses.dataclass(frozen=True, eq=False)
class NgramModel:
    """Probabilities of tokens given the previous order - 1 tokens of the sentence.

    Attributes:
      vocab_size: ids are 0 to vocab_size - 1; vocab_size marks the beginning of a sentence,
        vocab_size + 1 its end.
      discounts: D1, D2 and D3+ of each order, the lowest first.
      fell_back: the orders, counted from 1, that use `FALLBACK`.
    """

    vocab_size: int
    discounts: tuple[tuple[float, float, float], ...]
    fell_back: tuple[int, ...]
    _orders: tuple[_Order, ...] = dataclasses.field(repr=False)

    @property
    def order(self) -> int:
        return len(self._orders)

    @classmethod
    def train(
        cls,
        tokens: np.ndarray,
        offsets: np.ndarray,
        vocab_size: int,
        order: int = 3,
        discount_fallback: bool = False,
    ) -> Self:
        """Trains a model. Memory is about 80 bytes per token and order.

        Args:
          tokens: [tokens] int, the concatenated sentences.
          offsets: [sentences + 1] int, start of each sentence and end of the last.
          vocab_size: size of the tokenizer.
          order: n of the longest n-grams.
          discount_fallback: use `FALLBACK` for orders whose counts give no discounts.

        Raises:
          ConfigError: there is no sentence, order is below 1, or counts give no discounts.
        """
        if order < 1:
            raise ConfigError(f"order: must be at least 1, got {order}")
        if len(offsets) < 2:
            raise ConfigError("an n-gram model needs at least one sentence; give more text")
        base = vocab_size + 2
        padded, since = _padded(tokens, offsets, vocab_size)
        places, contexts, keys, firsts = [np.zeros(len(padded), np.int64)], [], [], []
        for n in range(1, order + 1):
            # N-grams by their end position, where the sentence has enough preceding tokens.
            here = np.flatnonzero(since >= n - 1)
            before = places[-1][here - 1] if n > 1 else 0
            found, first, inverse = np.unique(
                before * base + padded[here], return_index=True, return_inverse=True
            )
            place = np.full(len(padded), -1, np.int64)
            place[here] = inverse
            places.append(place)
            contexts.append(found // base)
            keys.append(found)
            firsts.append(here[first])
            raw = np.bincount(inverse)
        orders: list[_Order] = []
        discounts: list[tuple[float, float, float]] = []
        fell_back: list[int] = []
        for n in range(1, order + 1):
            adjusted = raw
            if n < order:
                # Number of distinct left neighbors. N-grams that begin a sentence have none and
                # keep their raw counts.
                adjusted = np.bincount(places[n][firsts[n]], minlength=len(keys[n - 1]))
                begins = padded[firsts[n - 1] - n + 1] == vocab_size
                counts = np.bincount(places[n][places[n] >= 0], minlength=len(keys[n - 1]))
                adjusted = np.where(begins, counts, adjusted)
            if n == 1:
                adjusted = np.where(keys[0] == vocab_size, 0, adjusted)  # never predicted
            chosen = _discounts(adjusted)
            if chosen is None:
                if not discount_fallback:
                    raise ConfigError(
                        f"order: counts of {n}-grams give no discounts (too little text, or too"
                        " few rare tokens); set discount_fallback"
                    )
                chosen = FALLBACK
                fell_back.append(n)
            discounts.append(chosen)
            size = len(keys[n - 2]) if n > 1 else 1
            orders.append(_smoothed(keys[n - 1], contexts[n - 1], adjusted, chosen, size))
        return cls(vocab_size, tuple(discounts), tuple(fell_back), tuple(orders))

    def log_probabilities(self, sentence: np.ndarray) -> np.ndarray:
        """Returns log p of each token and of the end of the sentence: [tokens + 1] float64."""
        begin, end = self.vocab_size, self.vocab_size + 1
        return np.log(self.probabilities(np.array([begin, *sentence, end]))[1:])

    def probabilities(self, tokens: np.ndarray) -> np.ndarray:
        """Returns p of each token of a text given the previous tokens: [tokens] float64.

        Args:
          tokens: [tokens] int, including markers of the beginning and end of the sentence.
        """
        base = self.vocab_size + 2
        tokens = np.asarray(tokens, np.int64)
        # p of the next lower order, and the index of the n-gram that ends at each position.
        p = np.full(len(tokens), 1 / (self.vocab_size + 1))
        before = np.zeros(len(tokens), np.int64)
        for order in self._orders:
            gram = order.find(before * base + tokens)
            gram = np.where(before < 0, -1, gram)
            known = before >= 0
            own = np.where(gram >= 0, order.discounted[np.maximum(gram, 0)], 0.0)
            left = np.where(known, order.left[np.maximum(before, 0)], 1.0)
            p = own + left * p
            before = np.concatenate([[-1], gram[:-1]])
        return p


def _padded(
    tokens: np.ndarray, offsets: np.ndarray, vocab_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Adds sentence markers; also returns the number of preceding tokens in the sentence."""
    lengths = np.diff(offsets) + 2
    starts = np.concatenate([[0], np.cumsum(lengths)])
    padded = np.full(starts[-1], -1, np.int64)
    padded[starts[:-1]] = vocab_size
    padded[starts[1:] - 1] = vocab_size + 1
    padded[padded < 0] = tokens[offsets[0] : offsets[-1]]
    return padded, np.arange(len(padded)) - np.repeat(starts[:-1], lengths)


def _discounts(adjusted: np.ndarray) -> tuple[float, float, float] | None:
    """Computes D1, D2, D3+ from the counts of counts 1 to 4; None if they are not valid."""
    n1, n2, n3, n4 = (int(np.sum(adjusted == k)) for k in (1, 2, 3, 4))
    if not (n1 and n2 and n3):
        return None
    y = n1 / (n1 + 2 * n2)
    found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    return found if all(0 <= d <= k for k, d in enumerate(found, start=1)) else None


def _smoothed(
    keys: np.ndarray,
    contexts: np.ndarray,
    adjusted: np.ndarray,
    discounts: tuple[float, float, float],
    size: int,
) -> _Order:
    """Computes the discounted probabilities. size: number of contexts."""
    discount = np.array([0.0, *discounts])[np.minimum(adjusted, 3)]
    totals = np.bincount(contexts, weights=adjusted, minlength=size)
    taken = np.bincount(contexts, weights=discount, minlength=size)
    left = np.divide(taken, totals, out=np.ones(size), where=totals > 0)
    discounted = (adjusted - discount) / np.maximum(totals[contexts], 1)
    return _Order(keys, discounted, left)
