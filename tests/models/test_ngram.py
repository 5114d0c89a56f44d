"""Modified Kneser-Ney against counts taken one by one, and against what probabilities must do."""

import collections
import itertools
from typing import Any

import numpy as np
import pytest

from lmjax.errors import ConfigError
from lmjax.models.ngram import FALLBACK, NgramModel

SIZE = 9
BEGIN, END = SIZE, SIZE + 1
VOCABULARY = [*range(SIZE), END]


def text(seed: int = 0, sentences: int = 60) -> list[list[int]]:
    """Sentences, an empty one too, in which 7 is rare and 8 never comes."""
    rng = np.random.default_rng(seed)
    weights = np.array([8, 5, 4, 3, 2, 1, 0.5, 0.1, 0])
    return [
        rng.choice(SIZE, int(rng.integers(0, 9)), p=weights / weights.sum()).tolist()
        for _ in range(sentences)
    ]


def train(sentences: list[list[int]], **settings: Any) -> NgramModel:
    offsets = np.cumsum([0, *map(len, sentences)])
    return NgramModel.train(np.array([*itertools.chain(*sentences)]), offsets, SIZE, **settings)


class ByHand:
    """The definition, with dictionaries."""

    def __init__(self, sentences: list[list[int]], order: int, fallback: tuple[int, ...]) -> None:
        raw = [collections.Counter[tuple[int, ...]]() for _ in range(order + 1)]
        for sentence in sentences:
            whole = [BEGIN, *sentence, END]
            for n in range(1, order + 1):
                raw[n].update(tuple(whole[i : i + n]) for i in range(len(whole) - n + 1))
        self.order, self.adjusted, self.discounts = order, [raw[0]], [(0.0, 0.0, 0.0)]
        for n in range(1, order + 1):
            self.adjusted.append(collections.Counter())
            for gram in raw[n]:
                if n == order or gram[0] == BEGIN:
                    self.adjusted[n][gram] = raw[n][gram]
                else:
                    self.adjusted[n][gram] = sum(g[1:] == gram for g in raw[n + 1])
            self.adjusted[n].pop((BEGIN,), None)  # never predicted
            values = list(self.adjusted[n].values())
            c = [values.count(k) for k in range(5)]
            if n in fallback:
                self.discounts.append(FALLBACK)
            else:
                y = c[1] / (c[1] + 2 * c[2])
                self.discounts.append(
                    tuple(k - (k + 1) * y * c[k + 1] / c[k] for k in (1, 2, 3))  # type: ignore[arg-type]
                )

    def p(self, word: int, context: tuple[int, ...]) -> float:
        if len(context) >= self.order:
            context = context[-self.order + 1 :] if self.order > 1 else ()
        n = len(context) + 1
        lower = self.p(word, context[1:]) if context else 1 / len(VOCABULARY)
        after = {g[-1]: a for g, a in self.adjusted[n].items() if g[:-1] == context}
        total = sum(after.values())
        if not total:
            return lower
        d = self.discounts[n]
        gamma = sum(d[min(a, 3) - 1] for a in after.values() if a) / total
        a = after.get(word, 0)
        return (a - d[min(a, 3) - 1] if a else 0.0) / total + gamma * lower


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_probabilities_are_those_of_counts_taken_one_by_one(order: int) -> None:
    sentences = text()
    model = train(sentences, order=order, discount_fallback=True)
    brute = ByHand(sentences, order, model.fell_back)
    assert model.order == order
    for mine, theirs in zip(model.discounts, brute.discounts[1:], strict=True):
        assert mine == pytest.approx(theirs)
    # Sentences that were read and others, with the token that never came.
    for sentence in [*sentences[:10], *text(1, 10), [8], [7, 8, 8, 0], [0, 1, 8, 0, 1, 2]]:
        found = np.exp(model.log_probabilities(np.array(sentence, int)))
        whole = (BEGIN, *sentence, END)
        expected = [brute.p(whole[i], whole[:i]) for i in range(1, len(whole))]
        np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_the_counts_of_a_real_size_give_discounts() -> None:
    model = train(text(sentences=400), discount_fallback=True)
    assert 3 not in model.fell_back and model.discounts[2] != FALLBACK


@pytest.mark.parametrize("order", [1, 2, 3])
def test_probabilities_sum_to_one(order: int) -> None:
    model = train(text(), order=order, discount_fallback=True)
    contexts = [(), (BEGIN,), (8,), (BEGIN, 8), *itertools.product(range(SIZE), repeat=2)]
    for context in contexts:
        p = [model.probabilities(np.array([*context, word]))[-1] for word in VOCABULARY]
        assert min(p) > 0
        assert sum(p) == pytest.approx(1, abs=1e-12), context


def test_a_higher_order_finds_text_with_an_order_likelier() -> None:
    """Each token but every tenth follows from the two before it."""
    rng = np.random.default_rng(0)
    sentences = []
    for _ in range(300):
        line = rng.integers(0, SIZE, 2).tolist()
        for _ in range(12):
            follows = (line[-1] + 2 * line[-2] + 1) % SIZE
            line.append(follows if rng.random() < 0.9 else int(rng.integers(SIZE)))
        sentences.append(line)
    nats = []
    for order in (1, 2, 3):
        model = train(sentences[:250], order=order, discount_fallback=True)
        held_out = [model.log_probabilities(np.array(s))[2:-1] for s in sentences[250:]]
        nats.append(-np.concatenate(held_out).mean())
    assert nats[1] > nats[0] - 0.1 and nats[2] < nats[1] - 1


def test_what_cannot_be_counted_is_refused() -> None:
    with pytest.raises(ConfigError, match="order: counts of 1-grams give no discounts"):
        train([[0, 0, 0]])
    with pytest.raises(ConfigError, match="order: must be at least 1"):
        train([[0]], order=0)
    with pytest.raises(ConfigError, match="at least one sentence"):
        train([])
