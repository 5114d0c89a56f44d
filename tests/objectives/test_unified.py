"""Masked LM in both directions or one: what it is equal to, and who sees what."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.errors import ConfigError
from lmjax.nn.layers import cross_entropy
from lmjax.nn.masks import causal, same_document
from lmjax.objectives.base import Batch, apply
from lmjax.objectives.masked import MaskedLM
from lmjax.objectives.unified import UnifiedLM
from tests import tiny

MASKED = tiny.objective("bert", sentence_prediction=False)
assert isinstance(MASKED, MaskedLM)
UNIFIED = UnifiedLM(
    vocabulary=tiny.VOCABULARY, model=MASKED.model, max_predictions=4, sentence_prediction=False
)
KEYS = jax.random.split(jax.random.key(3), tiny.BATCH)


@pytest.fixture(scope="module")
def clean() -> Batch:
    return {name: jnp.asarray(x) for name, x in tiny.batch("bert", 0).items()}


def corrupted(share: float, clean: Batch) -> Batch:
    return jax.vmap(dataclasses.replace(UNIFIED, left_to_right=share).corrupt)(KEYS, clean)


def test_alone_it_is_masked_lm_or_a_cloze_from_the_left(clean: Batch) -> None:
    masked = jax.vmap(MASKED.corrupt)(KEYS, clean)
    params = jax.jit(MASKED.init)(jax.random.key(0), masked)
    both, left, mixed = (corrupted(share, clean) for share in (0.0, 1.0, 0.5))
    for name, values in masked.items():
        for batch in (both, left, mixed):
            np.testing.assert_array_equal(batch[name], values)
    wanted = MASKED.loss(params, masked, None, None).terms["mlm"]
    found = UNIFIED.loss(params, both, None, None).terms["mlm"]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)

    mask = same_document(masked["segment_ids"]) & causal(tiny.LENGTH)
    inputs, targets = MASKED.inputs(masked)
    logits, _ = apply(MASKED.network, params, inputs.replace(mask=mask), targets)
    losses = cross_entropy(logits, masked["targets"]) * masked["target_weights"]
    found = UNIFIED.loss(params, left, None, None).terms["mlm"]
    np.testing.assert_allclose(found[0], losses.sum(), rtol=1e-5)

    # A mixture sums the rows of the two.
    free = np.asarray(mixed["both_sides"])
    assert 0 < free.sum() < tiny.BATCH
    logits_free, _ = apply(MASKED.network, params, *MASKED.inputs(masked))
    losses_free = cross_entropy(logits_free, masked["targets"]) * masked["target_weights"]
    found = UNIFIED.loss(params, mixed, None, None).terms["mlm"]
    expected = np.where(free[:, None], losses_free, losses).sum()
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)


def test_nothing_on_the_right_is_seen_from_the_left(clean: Batch) -> None:
    batch = corrupted(1.0, clean)
    params = jax.jit(UNIFIED.init)(jax.random.key(0), batch)
    mask = UNIFIED.inputs(batch)[0].mask
    assert not np.triu(np.asarray(mask.dense()), 1).any()
    everywhere = jnp.broadcast_to(jnp.arange(tiny.LENGTH), batch["tokens"].shape)
    changed = {**batch, "tokens": batch["tokens"].at[:, 8:].set(7)}
    before, after = (
        apply(UNIFIED.network, params, *UNIFIED.inputs(b)[:-1], everywhere)[0]
        for b in (batch, changed)
    )
    np.testing.assert_allclose(before[:, :8], after[:, :8], atol=1e-6)
    assert np.abs(before[:, 8:] - after[:, 8:]).max() > 1e-3


def test_as_many_examples_as_said(clean: Batch) -> None:
    one = {name: x[0] for name, x in clean.items()}
    keys = jax.random.split(jax.random.key(4), 4000)
    third = dataclasses.replace(UNIFIED, left_to_right=0.3)
    drawn = jax.jit(jax.vmap(lambda key: third.corrupt(key, one)["both_sides"]))(keys)
    assert abs(float(drawn.mean()) - 0.7) < 4 * (0.21 / 4000) ** 0.5
    with pytest.raises(ConfigError, match="left_to_right: must lie in"):
        dataclasses.replace(UNIFIED, left_to_right=1.5)
