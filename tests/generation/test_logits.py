"""The filters against NumPy, written from their definitions, and against transformers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmjax.generation import logits as filters
from lmjax.generation.settings import GenerationConfig

VOCABULARY, SLOTS, ROWS = 11, 9, 3


@st.composite
def cases(draw: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """logits with ties, tokens of few kinds, and which of them are there."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    coarse = draw(st.booleans())
    logits = rng.normal(size=(ROWS, VOCABULARY)) * draw(st.sampled_from([0.5, 3.0]))
    logits = np.round(logits) if coarse else logits
    tokens = rng.integers(0, draw(st.sampled_from([2, VOCABULARY])), (ROWS, SLOTS))
    begin, end = rng.integers(0, SLOTS, ROWS), rng.integers(1, SLOTS + 1)
    slot = np.arange(SLOTS)[None]
    valid = (slot >= np.minimum(begin, end - 1)[:, None]) & (slot < end)
    return logits.astype(np.float32), tokens.astype(np.int32), valid


def softmax(row: np.ndarray) -> np.ndarray:
    weights = np.exp(row.astype(np.float64) - row.max())
    return weights / weights.sum()


def on_rows(logits: np.ndarray, keep: Any) -> np.ndarray:
    return np.stack([np.where(keep(row), row, -np.inf) for row in logits])


@given(cases(), st.sampled_from([0.5, 1.3, 2.0]))
def test_repetition_penalty(case: Any, penalty: float) -> None:
    logits, tokens, valid = case
    expected = logits.copy()
    for row in range(ROWS):
        for token in set(tokens[row][valid[row]]):
            old = logits[row, token]
            expected[row, token] = old / penalty if old > 0 else old * penalty
    found = filters.repetition_penalty(logits, tokens, valid, penalty)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@given(cases(), st.sampled_from([-1.0, 0.7]))
def test_presence_penalty(case: Any, penalty: float) -> None:
    logits, tokens, valid = case
    expected = logits.copy()
    for row in range(ROWS):
        for token in set(tokens[row][valid[row]]):
            expected[row, token] -= penalty
    found = filters.presence_penalty(logits, tokens, valid, penalty)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@given(cases(), st.integers(1, 4))
def test_no_repeat_ngram(case: Any, size: int) -> None:
    logits, tokens, valid = case
    expected = logits.copy()
    for row in range(ROWS):
        text = list(tokens[row][valid[row]])
        grams = {tuple(text[i : i + size]) for i in range(len(text) - size + 1)}
        for token in range(VOCABULARY):
            would_be = [*text, token][-size:]
            if len(would_be) == size and tuple(would_be) in grams:
                expected[row, token] = -np.inf
    np.testing.assert_array_equal(filters.no_repeat_ngram(logits, tokens, valid, size), expected)


@given(cases(), st.sampled_from([1, 2, 5, VOCABULARY, 50]))
def test_top_k(case: Any, k: int) -> None:
    logits = case[0]
    expected = on_rows(logits, lambda row: [(row > x).sum() < k for x in row])
    np.testing.assert_array_equal(filters.top_k(logits, k), expected)


@given(cases(), st.sampled_from([0.05, 0.31, 0.77, 0.999, 1.0]))
def test_top_p_keeps_the_smallest_set_of_the_mass(case: Any, mass: float) -> None:
    logits = case[0]
    found = np.isfinite(np.asarray(filters.top_p(logits, mass)))
    for row, kept in zip(logits, found, strict=True):
        p = softmax(row)
        assert p[kept].sum() >= mass - 1e-5
        assert p[kept].sum() - p[kept].min() < mass + 1e-5  # none of them can go
        assert p[kept].min() >= p[~kept].max(initial=0) - 1e-7


@given(cases(), st.sampled_from([0.05, 0.4, 1.0]))
def test_min_p(case: Any, part: float) -> None:
    logits = case[0]
    found = np.isfinite(np.asarray(filters.min_p(logits, part)))
    for row, kept in zip(logits, found, strict=True):
        ratio = softmax(row) / softmax(row).max()
        assert kept[ratio > part + 1e-5].all() and not kept[ratio < part - 1e-5].any()
        assert kept[row.argmax()]


@given(cases(), st.sampled_from([0.1, 0.5, 0.95]))
def test_typical_keeps_what_is_nearest_to_the_entropy(case: Any, mass: float) -> None:
    logits = case[0]
    found = np.isfinite(np.asarray(filters.typical(logits, mass)))
    for row, kept in zip(logits, found, strict=True):
        p = softmax(row)
        distance = np.abs(-np.log(p) + (p * np.log(p)).sum())
        assert p[kept].sum() >= mass - 1e-5
        farthest = distance[kept].max()
        assert p[distance < farthest - 1e-4].sum() < mass + 1e-5
        assert kept[distance < farthest - 1e-4].all()


def test_a_row_with_one_token_left_passes_every_filter() -> None:
    row = np.full((1, VOCABULARY), -np.inf, np.float32)
    row[0, 4] = 2.0
    for found in (
        filters.top_k(row, 3),
        filters.top_p(row, 0.5),
        filters.min_p(row, 0.5),
        filters.typical(row, 0.5),
    ):
        np.testing.assert_array_equal(found, row)


SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0.6, "top_k": 4},
    {"temperature": 0.9, "top_p": 0.7},
    {"temperature": 1.5, "min_p": 0.2},
    {"temperature": 1.1, "typical_p": 0.6},
    {"temperature": 0.8, "repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
    {
        "temperature": 0.7,
        "top_k": 8,
        "top_p": 0.9,
        "min_p": 0.05,
        "typical_p": 0.9,
        "repetition_penalty": 1.2,
        "no_repeat_ngram_size": 3,
    },
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "+".join(s))
def test_all_together_are_those_of_transformers_in_their_order(settings: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=4, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config)
    theirs = {"do_sample": True, "top_k": 0, **settings}
    processors = model._get_logits_processor(
        transformers.GenerationConfig(**{"top_p": 1.0, "typical_p": 1.0, **theirs}),
        input_ids_seq_length=SLOTS,
        prefix_allowed_tokens_fn=None,
        logits_processor=transformers.LogitsProcessorList(),
    )
    assert len(processors) >= len(settings)
    ours = filters.Filters.of(GenerationConfig(**settings))
    rng = np.random.default_rng(0)
    for _ in range(20):
        logits = (3 * rng.normal(size=(ROWS, VOCABULARY))).astype(np.float32)
        tokens = rng.integers(0, VOCABULARY, (ROWS, SLOTS)).astype(np.int32)
        valid = np.ones_like(tokens, bool)
        expected = processors(torch.tensor(tokens).long(), torch.tensor(logits)).numpy()
        found = ours.shape(ours.penalise(jnp.asarray(logits), tokens, valid, valid))
        np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected))
        # Up to what is the same for all tokens of a row.
        found, expected = (jax.nn.log_softmax(x, axis=-1) for x in (found, expected))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [1e-5, 1e-30, 5e-324])
def test_a_temperature_near_0_leaves_the_most_probable(value: float) -> None:
    logits = np.array([[1.0, 900.0, 899.99, -5.0], [-3e4, -2.0, -1e5, -3.0]], np.float32)
    keys = jax.random.split(jax.random.key(0), 2)
    chosen = filters.Filters.of(GenerationConfig(temperature=value)).choose(keys, logits)
    assert chosen.tolist() == [1, 1]


@given(cases(), st.data())
def test_no_admitted_setting_makes_a_number_that_is_none(case: Any, data: st.DataObject) -> None:
    logits, tokens, valid = case
    edges = {
        "temperature": [5e-324, 1e-10, 2.0**32 - 1],
        "repetition_penalty": [1e-3, 1.0, 1e3],
        "presence_penalty": [-1e6, 0.0, 1e6],
        "top_k": [0, 1, 2**31 - 1],
        "top_p": [2e-38, 1e-9, 1.0 - 1e-12, 1.0],
        "min_p": [0.0, 5e-324, 1.0],
        "typical_p": [2e-38, 1e-9, 1.0],
    }
    settings = {name: data.draw(st.sampled_from(values)) for name, values in edges.items()}
    ours = filters.Filters.of(GenerationConfig(**settings))
    penalised = ours.penalise(jnp.asarray(logits), tokens, valid, valid)
    assert np.isfinite(penalised).all()
    shares = jax.nn.softmax(ours.shape(penalised), axis=-1)
    np.testing.assert_allclose(np.asarray(shares).sum(-1), 1.0, rtol=1e-5)
