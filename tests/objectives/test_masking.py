"""What is masked, against plain transcriptions of the papers' algorithms."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.objectives.masked import (
    SPAN_PROBABILITIES,
    choose,
    choose_spans,
    choose_words,
    prediction_count,
    replace,
    to_slots,
)

MANY = 4000
KEYS = jax.random.split(jax.random.key(0), MANY)
LENGTH = 20
# [CLS] six words of 1 to 4 pieces [SEP] four words [SEP] padding
CANDIDATES = np.array([0, *[1] * 10, 0, *[1] * 5, 0, 0, 0], bool)
STARTS = np.array([0, 1, 1, 0, 1, 0, 0, 1, 0, 0, 0, 0, 1, 1, 0, 1, 1, 0, 0, 0], bool)
WORDS = np.cumsum(CANDIDATES & STARTS) - 1


@pytest.mark.parametrize(("rate", "slots"), [(0.15, 20), (0.15, 77), (0.15, 400), (0.25, 130)])
def test_count_rounds_as_python_does(rate: float, slots: int) -> None:
    lengths = range(1, 2000)  # 190 * 0.15 is a tie in float32, not in Python
    counts = jax.jit(jax.vmap(lambda n: prediction_count(n, rate, slots)))(jnp.array(lengths))
    assert counts.tolist() == [min(slots, max(1, round(n * rate))) for n in lengths]


def test_tokens_are_chosen_uniformly_and_in_order() -> None:
    chosen = jax.jit(jax.vmap(lambda k: choose(k, "token", CANDIDATES, STARTS, jnp.int32(3), 5)))(
        KEYS
    )
    positions, weights = np.asarray(chosen.positions), np.asarray(chosen.weights)
    assert (weights == [1, 1, 1, 0, 0]).all()
    assert (positions[:, 3:] == 0).all()
    assert (np.diff(positions[:, :3]) > 0).all()
    assert CANDIDATES[positions[:, :3]].all()
    frequency = np.bincount(positions[:, :3].ravel(), minlength=LENGTH) / MANY
    np.testing.assert_allclose(frequency, CANDIDATES * 3 / CANDIDATES.sum(), atol=0.035)


def test_fewer_candidates_than_the_quota_are_all_chosen() -> None:
    few = jnp.zeros(LENGTH, bool).at[jnp.array([4, 9])].set(True)
    chosen = choose(KEYS[0], "token", few, STARTS, jnp.int32(5), 6)
    assert chosen.positions.tolist() == [4, 9, 0, 0, 0, 0]
    assert chosen.weights.tolist() == [1, 1, 0, 0, 0, 0]


def whole_words(rng: random.Random, count: int) -> set[int]:
    """create_masked_lm_predictions with do_whole_word_mask, word by word."""
    words: list[list[int]] = []
    for position in np.flatnonzero(CANDIDATES):
        if STARTS[position]:
            words.append([])
        words[-1].append(int(position))
    rng.shuffle(words)
    taken: set[int] = set()
    for word in words:
        if len(taken) >= count:
            break
        if len(taken) + len(word) > count:
            continue
        taken.update(word)
    return taken


@pytest.mark.parametrize("count", [2, 5])
def test_whole_words_are_those_of_the_papers_code(count: int) -> None:
    taken = np.asarray(
        jax.jit(jax.vmap(lambda k: choose_words(k, CANDIDATES, WORDS, jnp.int32(count))))(KEYS)
    )
    assert (taken.sum(1) <= count).all()
    for row in taken[:200]:
        for word in range(WORDS.max() + 1):
            pieces = row[CANDIDATES & (word == WORDS)]
            assert pieces.all() or not pieces.any()
    rng = random.Random(1)
    reference = np.zeros(LENGTH)
    for _ in range(MANY):
        reference[list(whole_words(rng, count))] += 1
    np.testing.assert_allclose(taken.mean(0), reference / MANY, atol=0.04)


def test_spans_fill_the_quota_with_runs_of_whole_words() -> None:
    taken, groups = jax.jit(
        jax.vmap(lambda k: choose_spans(k, CANDIDATES, jnp.array(WORDS), jnp.int32(6), 8))
    )(KEYS)
    taken, groups = np.asarray(taken), np.asarray(groups)
    assert (taken.sum(1) == 6).all()
    assert not (taken & ~CANDIDATES).any()
    for row, group in zip(taken[:300], groups[:300], strict=True):
        for number in set(group[row]):
            inside = np.flatnonzero(row & (group == number))
            # A span may step over what an earlier one has taken, not over [SEP].
            between = np.arange(inside[0], inside[-1] + 1)
            assert row[between].all()


def spans(rng: np.random.Generator, count: int) -> list[int]:
    """PairWithSpanMaskingScheme of the authors' code, word by word."""
    taken: list[int] = []
    while len(taken) < count:
        words = rng.choice(np.arange(1, 11), p=SPAN_PROBABILITIES)
        anchor = rng.choice([i for i in np.flatnonzero(CANDIDATES) if i not in taken])
        position = int(np.searchsorted(WORDS, WORDS[anchor]))
        while (
            position < LENGTH
            and CANDIDATES[position]
            and WORDS[position] < WORDS[anchor] + words
            and len(taken) < count
        ):
            if position not in taken:
                taken.append(position)
            position += 1
    return taken


def test_spans_fall_where_those_of_the_papers_code_fall() -> None:
    taken, _ = jax.jit(
        jax.vmap(lambda k: choose_spans(k, CANDIDATES, jnp.array(WORDS), jnp.int32(6), 8))
    )(KEYS)
    rng = np.random.default_rng(0)
    reference = np.zeros((MANY, LENGTH))
    for row in reference:
        row[spans(rng, 6)] = 1
    np.testing.assert_allclose(taken.mean(0), reference.mean(0), atol=0.05)
    pairs = [np.einsum("ni,nj->ij", x, x) / MANY for x in (np.asarray(taken) * 1.0, reference)]
    np.testing.assert_allclose(*pairs, atol=0.05)


def test_span_lengths_are_geometric_and_clipped() -> None:
    # One-piece words, a long row and a large quota: spans are as long as they were drawn.
    length = 400
    every = jnp.ones(length, bool)
    words = jnp.arange(length)
    taken, groups = jax.jit(jax.vmap(lambda k: choose_spans(k, every, words, jnp.int32(12), 12)))(
        KEYS
    )
    first = np.asarray(taken & (groups == 0)).sum(1)
    expected = np.dot(SPAN_PROBABILITIES, np.arange(1, 11))
    assert abs(first.mean() - expected) < 0.15  # 3.8 in the paper (section 3.1)
    assert first.max() == 10
    np.testing.assert_allclose(
        np.bincount(first, minlength=11)[1:] / MANY, SPAN_PROBABILITIES, atol=0.03
    )


def test_eighty_ten_ten() -> None:
    size, mask_token = 50, 4
    tokens = jnp.arange(LENGTH) + 10
    slots = to_slots(jnp.asarray(CANDIDATES), jnp.arange(LENGTH), 15)

    def corrupt(key: jax.Array) -> jax.Array:
        return replace(
            key,
            tokens,
            slots,
            mask_token=mask_token,
            vocab_size=size,
            mask_fraction=0.8,
            random_fraction=0.1,
        )

    new = np.asarray(jax.jit(jax.vmap(corrupt))(KEYS))
    assert (new[:, ~CANDIDATES] == np.asarray(tokens)[~CANDIDATES]).all()
    at = new[:, CANDIDATES]
    same = at == np.asarray(tokens)[CANDIDATES]
    # A random token is the mask or the original once in `size` times.
    assert abs((at == mask_token).mean() - (0.8 + 0.1 / size)) < 0.01
    assert abs(same.mean() - (0.1 + 0.1 / size)) < 0.01
    others = at[(at != mask_token) & ~same]
    counts = np.bincount(others, minlength=size)
    assert counts.size == size
    assert (counts > 0).sum() >= size - 1  # special tokens are drawn as any other


def test_one_draw_for_a_group() -> None:
    tokens = jnp.arange(LENGTH) + 10
    groups = jnp.where(jnp.arange(LENGTH) < 6, 0, 1)
    slots = to_slots(jnp.asarray(CANDIDATES), groups, 15)

    def corrupt(key: jax.Array) -> jax.Array:
        return replace(
            key,
            tokens,
            slots,
            mask_token=4,
            vocab_size=50,
            mask_fraction=0.5,
            random_fraction=0.0,
        )

    masked = np.asarray(jax.jit(jax.vmap(corrupt))(KEYS[:500])) == 4
    first, second = masked[:, 1:6], masked[:, 6:11]
    assert (first.all(1) | ~first.any(1)).all()
    assert (second.all(1) | ~second.any(1)).all()
    assert (first[:, 0] != second[:, 0]).any()
