"""What is done to logits, against plain NumPy and against transformers."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmjax.generation import logits as ours

SIZE, ROWS, SLOTS = 12, 3, 10
RNG = np.random.default_rng(0)
# Some of them equal, since ties are where rules differ.
LOGITS = np.round(RNG.normal(size=(ROWS, SIZE)) * 2, 1).astype(np.float32)
TOKENS = RNG.integers(0, 4, (ROWS, SLOTS)).astype(np.int32)


def softmax(row: np.ndarray) -> np.ndarray:
    e = np.exp(row - row.max())
    return e / e.sum()


def kept_top_k(row: np.ndarray, k: int) -> set[int]:
    return {i for i in range(SIZE) if row[i] >= sorted(row)[-k]}


def kept_top_p(row: np.ndarray, p: float) -> set[int]:
    """Leaves out the least likely ones while what is left out holds at most 1 - p."""
    left_out, share, kept = 0.0, softmax(row), set(range(SIZE))
    for i in np.argsort(row, kind="stable")[:-1]:
        left_out += share[i]
        if left_out > np.float32(1 - p):
            break
        kept.remove(int(i))
    return kept


def kept_min_p(row: np.ndarray, share: float) -> set[int]:
    p = softmax(row)
    return {i for i in range(SIZE) if p[i] >= share * p.max() * (1 - 1e-6)}


def kept_typical(row: np.ndarray, mass: float) -> set[int]:
    p = softmax(row)
    entropy = -(p * np.log(p)).sum()
    distance = np.abs(-np.log(p) - entropy)
    order, held, last = np.argsort(distance, kind="stable"), 0.0, 0.0
    for i in order:
        last = distance[i]
        held += p[i]
        if held >= mass:
            break
    return {i for i in range(SIZE) if distance[i] <= last + 1e-6}


RULES: dict[str, tuple[Callable[..., Any], Callable[..., set[int]], list[float]]] = {
    "top_k": (ours.top_k, kept_top_k, [1, 3, 12]),
    "top_p": (ours.top_p, kept_top_p, [0.05, 0.5, 0.93]),
    "min_p": (ours.min_p, kept_min_p, [0.02, 0.3, 1.0]),
    "typical": (ours.typical, kept_typical, [0.1, 0.5, 0.93]),
}
ROW = st.lists(st.integers(-30, 30), min_size=SIZE, max_size=SIZE, unique=True)


@pytest.mark.parametrize("name", RULES)
@given(row=ROW)
def test_who_is_kept_by_a_loop(name: str, row: list[int]) -> None:
    rule, by_loop, settings = RULES[name]
    array = np.array(row, np.float32) / 7
    for setting in settings:
        found = np.asarray(rule(jnp.asarray(array)[None], setting))[0]
        kept = set(np.flatnonzero(np.isfinite(found)).tolist())
        assert kept == by_loop(array, setting)
        np.testing.assert_array_equal(found[sorted(kept)], array[sorted(kept)])


@given(tokens=st.lists(st.integers(0, 2), min_size=1, max_size=SLOTS), n=st.integers(1, 4))
def test_ngrams_by_a_loop(tokens: list[int], n: int) -> None:
    begin = SLOTS - len(tokens)
    slots = np.full((1, SLOTS + 3), 1, np.int32)  # of what stands before and behind nothing is read
    slots[0, begin:SLOTS] = tokens
    found = ours.no_repeat_ngram(
        jnp.zeros((1, 3)), jnp.asarray(slots), jnp.array([begin]), jnp.int32(SLOTS), n
    )
    banned = set()
    if len(tokens) >= n - 1:
        last = tokens[len(tokens) - (n - 1) :]
        for i in range(len(tokens) - n + 1):
            if tokens[i : i + n - 1] == last:
                banned.add(tokens[i + n - 1])
    assert set(np.flatnonzero(np.isneginf(np.asarray(found)[0])).tolist()) == banned


def test_penalties_by_a_loop() -> None:
    text = np.arange(SLOTS)[None] >= np.array([[0], [4], [7]])
    seen = np.asarray(ours.seen(jnp.asarray(TOKENS), jnp.asarray(text), SIZE))
    repeated = np.asarray(ours.repetition_penalty(jnp.asarray(LOGITS), jnp.asarray(seen), 1.7))
    present = np.asarray(ours.presence_penalty(jnp.asarray(LOGITS), jnp.asarray(seen), 0.6))
    for row in range(ROWS):
        there = set(TOKENS[row][text[row]].tolist())
        for token, logit in enumerate(LOGITS[row]):
            assert seen[row, token] == (token in there)
            divided = logit / 1.7 if logit > 0 else logit * 1.7
            expected = divided if token in there else logit
            assert repeated[row, token] == pytest.approx(expected, rel=1e-6)
            assert present[row, token] == pytest.approx(logit - 0.6 * (token in there), abs=1e-6)


PROCESSORS = {
    "TopKLogitsWarper": (ours.top_k, 4),
    "TopPLogitsWarper": (ours.top_p, 0.8),
    "MinPLogitsWarper": (ours.min_p, 0.1),
    "TypicalLogitsWarper": (ours.typical, 0.6),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_transformers_keeps_the_same(name: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    rule, setting = PROCESSORS[name]
    warper = getattr(transformers, name)(setting)
    rows = RNG.normal(size=(50, SIZE)).astype(np.float32)
    theirs = warper(torch.zeros((50, 1), dtype=torch.long), torch.tensor(rows)).numpy()
    np.testing.assert_array_equal(np.asarray(rule(jnp.asarray(rows), setting)), theirs)


def test_transformers_penalises_the_same() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    tokens, scores = torch.tensor(TOKENS).long(), torch.tensor(LOGITS)
    everything = jnp.ones(TOKENS.shape, bool)
    seen = ours.seen(jnp.asarray(TOKENS), everything, SIZE)
    theirs = transformers.RepetitionPenaltyLogitsProcessor(1.3)(tokens, scores.clone()).numpy()
    np.testing.assert_allclose(
        ours.repetition_penalty(jnp.asarray(LOGITS), seen, 1.3), theirs, rtol=1e-6
    )
    for n in (1, 2, 3):
        theirs = transformers.NoRepeatNGramLogitsProcessor(n)(tokens, scores.clone()).numpy()
        found = ours.no_repeat_ngram(
            jnp.asarray(LOGITS), jnp.asarray(TOKENS), jnp.zeros(ROWS, int), jnp.int32(SLOTS), n
        )
        np.testing.assert_array_equal(found, theirs)
