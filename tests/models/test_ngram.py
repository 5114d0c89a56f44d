"""N-gram models against counts taken one by one, and against what probabilities must do."""

import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax.convert.ngrams import opened
from lmjax.convert.pretrained import Pretrained
from lmjax.errors import ConfigError
from lmjax.evaluation.perplexity import perplexity
from lmjax.evaluation.scoring import Passage, passage_scores, token_scores
from lmjax.models.ngram import Smoothing
from lmjax.models.ngram_estimation import FALLBACK, Estimated, estimate
from tests.words import SIZE, tokenizer

SMOOTHINGS: tuple[Smoothing, ...] = (
    "modified_kneser_ney",
    "kneser_ney",
    "jelinek_mercer",
    "katz",
    "stupid_backoff",
)
PROBABLE = SMOOTHINGS[:-1]
EOD = 5
BEGIN, END = -1, EOD  # in the tests, the two ends of a text are different symbols
TOKENS = range(SIZE)
RARE = 22  # comes once or not at all; 23 never comes
Text = list[int]


def texts(seed: int = 0, count: int = 60) -> list[Text]:
    """Texts, an empty one too, over the tokens 6 to 22."""
    rng = np.random.default_rng(seed)
    weights = 1.0 / np.arange(1, 18) ** 1.5
    lengths = rng.integers(0, 9, count)
    return [[], *((6 + rng.choice(17, n, p=weights / weights.sum())).tolist() for n in lengths)]


def joined(listed: Sequence[Text]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([*itertools.chain(*listed)], int), np.cumsum([0, *map(len, listed)])


def train(listed: Sequence[Text], smoothing: Smoothing, order: int = 3, **more: Any) -> Estimated:
    more = {"discount_fallback": True, "held_out": joined(texts(7, 20)), "ends": (EOD, EOD), **more}
    ends = more.pop("ends")
    return estimate(joined(listed), SIZE, ends, order=order, smoothing=smoothing, **more)


class ByHand:
    """The definitions, with dictionaries."""

    def __init__(self, listed: Sequence[Text], smoothing: Smoothing, found: Estimated) -> None:
        self.smoothing, self.order = smoothing, found.config.order
        self.constants = [(), *found.constants]
        self.counts = [collections.Counter[tuple[int, ...]]() for _ in range(self.order + 1)]
        for text in listed:
            whole = (BEGIN, *text, END)
            for n in range(1, self.order + 1):
                self.counts[n].update(whole[i : i + n] for i in range(len(whole) - n + 1))
        self.totals = sum(c for gram, c in self.counts[1].items() if gram != (BEGIN,))
        if "kneser_ney" in smoothing:
            for n in range(1, self.order):
                for gram in self.counts[n]:
                    if gram[0] != BEGIN:
                        left = sum(longer[1:] == gram for longer in self.counts[n + 1])
                        self.counts[n][gram] = left
        self.counts[1].pop((BEGIN,))  # never predicted
        self.p = functools.cache(self._p)

    def _p(self, word: int, context: tuple[int, ...]) -> float:
        context = context[max(0, len(context) - self.order + 1) :]
        n = len(context) + 1
        after = {g[-1]: c for g, c in self.counts[n].items() if g[:-1] == context}
        total, own = sum(after.values()), after.get(word, 0)

        def lower(w: int) -> float:
            return self.p(w, context[1:]) if context else 1 / SIZE

        if self.smoothing == "stupid_backoff":
            return own / total if own else 0.4 * lower(word)
        if not total:
            return lower(word)
        constants = self.constants[n]
        if self.smoothing == "jelinek_mercer":
            weight = constants[int(math.log2(total))]
            return weight * own / total + (1 - weight) * lower(word)

        def kept(count: int) -> float:
            if self.smoothing == "katz" and constants != FALLBACK:
                return count * (constants[count - 1] if count <= 5 else 1.0)
            return count - constants[min(count, 3) - 1]

        mass = sum(map(kept, after.values()))
        if self.smoothing == "katz":
            if mass == total and len(after) < SIZE:
                total += 1
            if own:
                return kept(own) / (mass if len(after) == SIZE else total)
            unseen = sum(lower(w) for w in TOKENS if w not in after)
            return (total - mass) / total * lower(word) / unseen
        return (kept(own) if own else 0.0) / total + (sum(after.values()) - mass) / total * lower(
            word
        )


class Listed:
    """The parameters, read one n-gram at a time."""

    def __init__(self, found: Estimated) -> None:
        self.order = found.config.order
        self.weight = math.log(0.4) if found.config.smoothing == "stupid_backoff" else 0.0
        self.p: dict[tuple[int, ...], float] = {}
        self.backoff: dict[tuple[int, ...], float] = {}
        grams: list[tuple[int, ...]] = [(i,) for i in TOKENS]
        for n in range(1, self.order + 1):
            values = found.params[f"order_{n}"]
            self.p |= zip(grams, values["log_probs"].tolist(), strict=True)
            if n < self.order:
                self.backoff |= zip(grams, values["log_backoffs"].tolist(), strict=True)
                after = found.params[f"order_{n + 1}"]["tokens"].tolist()
                sizes = np.diff(values["starts"])
                prefixes = [g for g, size in zip(grams, sizes, strict=True) for _ in range(size)]
                grams = [(*g, token) for g, token in zip(prefixes, after, strict=True)]
        self.log = functools.cache(self._log)

    def _log(self, word: int, context: tuple[int, ...]) -> float:
        context = tuple(EOD if t == BEGIN else t for t in context)
        context = context[max(0, len(context) - self.order + 1) :]
        gram = (*context, word)
        if gram in self.p:
            return self.p[gram]
        return self.backoff.get(context, self.weight) + self.log(word, context[1:])


def contexts(listed: Sequence[Text], order: int) -> list[tuple[int, ...]]:
    """All contexts that occur, and some that do not."""
    found = {(), (BEGIN,), (23,), (BEGIN, 23), (6, 23), (23, 6)}
    for text in listed:
        whole = (BEGIN, *text)
        found |= {whole[max(0, i - n) : i] for i in range(1, len(whole) + 1) for n in range(order)}
    return sorted(found)


CORPUS = texts()


@functools.cache
def trained(smoothing: Smoothing, order: int = 3) -> Estimated:
    return train(CORPUS, smoothing, order)


def model(found: Estimated) -> Pretrained:
    return opened(found.config, found.params, tokenizer())


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@pytest.mark.parametrize("order", [1, 2, 4])
def test_parameters_are_those_of_counts_taken_one_by_one(smoothing: Smoothing, order: int) -> None:
    found = trained(smoothing, order)
    brute, listed = ByHand(CORPUS, smoothing, found), Listed(found)
    for context in contexts(CORPUS[:20], order):
        mine = [math.exp(listed.log(word, context)) for word in TOKENS]
        theirs = [brute.p(word, context) for word in TOKENS]
        np.testing.assert_allclose(mine, theirs, rtol=2e-6, err_msg=str(context))


_corpora = st.lists(st.lists(st.integers(6, 9), max_size=7), min_size=1, max_size=8).filter(
    lambda listed: max(map(len, listed)) >= 1
)


@settings(max_examples=25, deadline=None)
@given(listed=_corpora, order=st.integers(1, 3), smoothing=st.sampled_from(PROBABLE))
def test_probabilities_of_any_corpus_sum_to_one(
    listed: list[Text], order: int, smoothing: Smoothing
) -> None:
    found = Listed(train(listed, smoothing, order))
    for context in contexts(listed, order):
        p = [math.exp(found.log(word, context)) for word in TOKENS]
        assert min(p) > 0 and sum(p) == pytest.approx(1, abs=2e-6), context


def test_discounts_are_those_of_the_papers() -> None:
    listed = texts(5, 300)
    modified = train(listed, "modified_kneser_ney", 2)
    assert modified.fell_back == (1,)
    brute = ByHand(listed, "stupid_backoff", modified)  # which keeps the counts
    n = collections.Counter(brute.counts[2].values())
    y = n[1] / (n[1] + 2 * n[2])
    expected = [k - (k + 1) * y * n[k + 1] / n[k] for k in (1, 2, 3)]
    assert modified.constants[1] == pytest.approx(expected)
    single = train(listed, "kneser_ney", 2)
    assert single.constants[1] == pytest.approx((y,) * 3)
    # Katz's equation: sum_r n_r (1 - d_r) r = n_1, and the discounts 1 - d_r are proportional to
    # 1 - r*/r.
    katz = train(listed, "katz", 2)
    assert katz.fell_back == (1,)
    d = katz.constants[1]
    assert sum(n[r] * (1 - d[r - 1]) * r for r in range(1, 6)) == pytest.approx(n[1])
    stars = [1 - (r + 1) * n[r + 1] / n[r] / r for r in range(1, 6)]
    np.testing.assert_allclose(np.subtract(1, d) * stars[0], np.multiply(1 - d[0], stars))
    brute, own = ByHand(listed, "katz", katz), Listed(katz)
    for word, context in itertools.product(TOKENS, [(6,), (7,), (15,), (BEGIN,)]):
        assert math.exp(own.log(word, context)) == pytest.approx(brute.p(word, context), rel=2e-6)


def test_weights_of_jelinek_mercer_are_the_best_for_the_held_out_text() -> None:
    found = train(CORPUS, "jelinek_mercer", 2, held_out=joined(texts(7, 200)))
    held_out = [(BEGIN, *text, END) for text in texts(7, 200)]

    def nats(constants: Sequence[Sequence[float]]) -> float:
        by_hand = ByHand(CORPUS, "jelinek_mercer", dataclasses.replace(found, constants=constants))
        events = [(t[i], t[max(0, i - 1) : i]) for t in held_out for i in range(1, len(t))]
        return sum(math.log(by_hand.p(word, context)) for word, context in events)

    best = nats(found.constants)
    assert nats([[0.5] * 64] * 2) < best - 1
    for order, bucket in ((0, 7), (1, 3), (1, 4), (1, 5)):
        for change in (-0.05, 0.05):
            other = [list(row) for row in found.constants]
            other[order][bucket] = float(np.clip(other[order][bucket] + change, 0, 0.9999))
            assert nats(other) <= best + 2e-2


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_the_network_reads_its_parameters(smoothing: Smoothing) -> None:
    found = trained(smoothing)
    network, listed = model(found), Listed(found)
    heard = [*CORPUS[:12], *texts(9, 12), [23], [6, 23, 23, 6, 7], [6, 6, 6, 7, 8, 6, 9]]
    passages = [Passage(np.array([*text, END], np.int32)) for text in heard]
    for text, scores in zip(heard, passage_scores(network, passages), strict=True):
        whole = (BEGIN, *text, END)
        for i, (mine, greedy) in enumerate(zip(*scores, strict=True), 1):
            every = np.array([listed.log(word, whole[:i]) for word in TOKENS])
            assert mine == pytest.approx(every[whole[i]], abs=1e-5)
            if abs(every.max() - mine) > 1e-5 or every.argmax() == whole[i]:
                assert greedy == (every.max() - mine < 1e-5)


def test_logits_are_log_probabilities_and_padding_is_not_read() -> None:
    found = trained("modified_kneser_ney")
    network, listed = model(found), Listed(found)
    tokens = np.array([[EOD, 6, 7, 6], [0, 0, EOD, 6]])
    logits = np.asarray(network(tokens, real=tokens > 0))
    for row, at, context in ((0, 3, (BEGIN, 6, 7, 6)), (1, 3, (BEGIN, 6)), (1, 2, (BEGIN,))):
        expected = [listed.log(word, context) for word in TOKENS]
        np.testing.assert_allclose(logits[row, at], expected, atol=1e-5)


def test_generation_and_perplexity_are_those_of_any_model() -> None:
    network, listed = model(trained("modified_kneser_ney")), Listed(trained("modified_kneser_ney"))
    (scores,) = token_scores(network, ["w6 w7"])
    found = perplexity(network, ["w6 w7"])
    assert found.nats == pytest.approx(-scores.sum()) and found.tokens == 2
    from lmjax.generation.api import generate

    made = generate(network, "w6", temperature=1.0, num_return_sequences=4, max_new_tokens=6)
    assert len({tuple(text.token_ids) for text in made}) > 1
    for text in made:
        whole = (BEGIN, 6, *text.token_ids.tolist())
        expected = [listed.log(whole[i], whole[:i]) for i in range(2, len(whole))]
        np.testing.assert_allclose(text.log_probs, expected, atol=1e-5)


def test_stupid_backoff_has_no_perplexity() -> None:
    network = model(trained("stupid_backoff"))
    assert network.network.score_methods == ("stupid_backoff",)
    with pytest.raises(ConfigError, match="no probabilities, so they have no perplexity"):
        perplexity(network, ["w6"])


@pytest.mark.parametrize(
    ("listed", "settings", "message"),
    [
        ([], {}, "at least one text"),
        ([[6, EOD]], {}, "contains id 5, which marks the ends"),
        ([[6, 6, 6]], {"discount_fallback": False}, "config.order: the counts of 1-grams give no"),
        ([[6]], {"order": 4}, "config.order: no text has 4-grams; lower it to 3"),
        ([[6]], {"order": 0}, "order: must be at least 1"),
        (CORPUS, {"smoothing": "jelinek_mercer", "held_out": None}, "needs held-out text"),
    ],
)
def test_what_cannot_be_counted_is_refused(
    listed: list[Text], settings: dict[str, Any], message: str
) -> None:
    given: dict[str, Any] = {"smoothing": "modified_kneser_ney", "order": 3, **settings}
    with pytest.raises(ConfigError, match=message):
        train(listed, **given)
