"""BERT's corruption as a whole, against a transcription of create_pretraining_data.py."""

import random

import jax
import numpy as np
import pytest

from lmjax.objectives.base import Batch
from lmjax.objectives.masked import MaskedLM, Masking
from tests import tiny

MANY = 4000
V = tiny.VOCABULARY
STARTS = np.flatnonzero(V.starts_word & ~V.special)
CONTINUES = np.flatnonzero(~V.starts_word & ~V.special)
# [CLS], words of 1, 2, 3, 1, 2 pieces, [SEP], of 1, 1, 4, [SEP], padding: 18 of 22 tokens.
LENGTHS, SECOND = (1, 2, 3, 1, 2), (1, 1, 4)
RATE, QUOTA, SLOTS = 0.25, 4, 7  # round(18 * 0.25), a tie, goes to the even number


def pieces(lengths: tuple[int, ...]) -> list[int]:
    rng = np.random.default_rng(sum(lengths))
    return [
        int(piece) for n in lengths for piece in (rng.choice(STARTS), *rng.choice(CONTINUES, n - 1))
    ]


TOKENS = [V.cls, *pieces(LENGTHS), V.sep, *pieces(SECOND), V.sep]
REAL = len(TOKENS)
EXAMPLE = {
    "tokens": np.array([*TOKENS, *[V.pad] * 4], np.int32),
    "segment_ids": np.array([*[1] * REAL, *[0] * 4], np.int32),
}


def create_masked_lm_predictions(rng: random.Random, whole_word: bool) -> list[int]:
    """The authors' function: the tokens as masked, -1 where nothing is predicted."""
    words: list[list[int]] = []
    for i, token in enumerate(TOKENS):
        if token in (V.cls, V.sep):
            continue
        if whole_word and words and not V.starts_word[token]:
            words[-1].append(i)
        else:
            words.append([i])
    rng.shuffle(words)
    quota = min(SLOTS, max(1, round(len(TOKENS) * RATE)))
    masked = [-1] * len(TOKENS)
    taken = 0
    for word in words:
        if taken >= quota:
            break
        if taken + len(word) > quota:
            continue
        for i in word:
            if rng.random() < 0.8:
                masked[i] = V.mask
            elif rng.random() < 0.5:
                masked[i] = TOKENS[i]
            else:
                masked[i] = rng.randint(0, V.size - 1)
            taken += 1
    return masked


def corrupt(masking: Masking) -> Batch:
    objective = tiny.objective("bert", mask_rate=RATE, max_predictions=SLOTS, masking=masking)
    assert isinstance(objective, MaskedLM)
    keys = jax.random.split(jax.random.key(3), MANY)
    made = jax.jit(jax.vmap(objective.corrupt, in_axes=(0, None)))(keys, EXAMPLE)
    return jax.device_get(made)


def masked_rows(made: Batch) -> np.ndarray:
    """[MANY, length], the tokens as masked, -1 where nothing is predicted."""
    rows = np.full(made["tokens"].shape, -1)
    for row, at, weights, tokens in zip(
        rows, made["target_positions"], made["target_weights"], made["tokens"], strict=True
    ):
        used = at[weights > 0]
        row[used] = tokens[used]
    return rows


def check_slots(made: Batch) -> None:
    """Slots ascend, unused ones are 0 and weigh 0; the rest of the text is as it was."""
    at, weights = made["target_positions"], made["target_weights"]
    count = weights.sum(1).astype(int)
    np.testing.assert_array_equal(weights, np.arange(SLOTS) < count[:, None])
    assert (at[weights == 0] == 0).all()
    assert (np.diff(at, axis=1)[weights[:, 1:] > 0] > 0).all()
    used = weights > 0
    assert not np.isin(EXAMPLE["tokens"][at[used]], (V.cls, V.sep, V.pad)).any()
    np.testing.assert_array_equal(made["targets"], EXAMPLE["tokens"][at])
    rows = masked_rows(made)
    np.testing.assert_array_equal(np.where(rows < 0, EXAMPLE["tokens"], rows), made["tokens"])


def agree(found: np.ndarray, expected: np.ndarray) -> None:
    """Two frequencies, each of MANY draws, differ by less than 5 standard deviations."""
    p = (found + expected) / 2
    np.testing.assert_array_less(
        np.abs(found - expected), 5 * np.sqrt(2 * p * (1 - p) / MANY) + 2 / MANY
    )


@pytest.mark.parametrize("masking", ["token", "whole_word"])
def test_distribution_is_that_of_the_authors_code(masking: Masking) -> None:
    made = corrupt(masking)
    check_slots(made)
    found = masked_rows(made)[:, :REAL]
    rng = random.Random(0)
    whole_word = masking == "whole_word"
    expected = np.array([create_masked_lm_predictions(rng, whole_word) for _ in range(MANY)])
    counts = [np.bincount((rows >= 0).sum(1), minlength=8) / MANY for rows in (found, expected)]
    agree(*counts)
    assert counts[0][QUOTA] == 1.0 or whole_word  # words need not add up to the quota
    for kind in (
        lambda rows: rows >= 0,
        lambda rows: rows == V.mask,
        lambda rows: rows == TOKENS,
        lambda rows: (rows >= 0) & (rows != V.mask) & (rows != TOKENS),
    ):
        agree(kind(found).mean(0), kind(expected).mean(0))
    # Which positions go together, and whether their fates do.
    for kind in (lambda rows: rows >= 0, lambda rows: rows == V.mask):
        pairs = [
            np.einsum("ni,nj->ij", *[kind(rows) * 1.0] * 2) / MANY for rows in (found, expected)
        ]
        agree(*pairs)


def test_spans_meet_the_quota_and_share_one_fate() -> None:
    made = corrupt("span")
    check_slots(made)
    rows = masked_rows(made)[:, :REAL]
    assert ((rows >= 0).sum(1) == QUOTA).all()
    chosen, masked = rows >= 0, rows == V.mask
    assert abs(masked[chosen].mean() - (0.8 + 0.1 / V.size)) < 0.02
    # Pieces of a word fall to one span, unless the quota or a second span cuts it.
    inside = np.zeros(REAL, bool)
    inside[1:] = ~V.starts_word[TOKENS[1:]]
    both = chosen[:, 1:] & chosen[:, :-1] & inside[1:]
    alike = masked[:, 1:] == masked[:, :-1]
    assert both.sum() > MANY
    assert alike[both].mean() > 0.99
    # Whole words, but for one cut by the quota.
    split = (chosen[:, 1:] != chosen[:, :-1]) & inside[1:]
    assert (split.sum(1) <= 1).all()


def test_the_key_alone_decides() -> None:
    corrupt = jax.jit(tiny.objective("bert").corrupt)
    first, again, other = (corrupt(jax.random.key(i), EXAMPLE)["tokens"] for i in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (np.asarray(first) != np.asarray(other)).any()
