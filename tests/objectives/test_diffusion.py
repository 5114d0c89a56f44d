"""The bound of masked diffusion against all orders of a short text, and its sampler."""

import itertools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.models.bert import BertConfig
from lmjax.objectives.base import Batch
from lmjax.objectives.diffusion import MaskedDiffusion, mask_rate
from lmjax.training.step import corrupt_batch
from tests import tiny

LENGTH = 4
Schedule = Literal["linear", "cosine"]


def objective(schedule: Schedule = "linear") -> MaskedDiffusion:
    model = BertConfig(tiny.TRUNK, max_length=tiny.LENGTH, vocab_size=tiny.SIZE)
    return MaskedDiffusion(vocabulary=tiny.VOCABULARY, model=model, schedule=schedule)


def text(tokens: Any) -> Batch:
    tokens = np.asarray(tokens, np.int32)
    return {
        "tokens": tokens,
        "token_types": np.zeros_like(tokens),
        "segment_ids": np.ones_like(tokens),
        "positions": np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape),
    }


def trained(made: MaskedDiffusion, batch: Batch) -> Any:
    corrupted, _ = corrupt_batch(made, jax.random.key(0), batch)
    params = jax.jit(made.init)(jax.random.key(1), corrupted)
    return jax.tree.map(lambda leaf: 8 * leaf if leaf.ndim > 1 else leaf, params)


def losses_by_mask(made: MaskedDiffusion, params: Any, tokens: np.ndarray) -> np.ndarray:
    """-log p of each token given the tokens that are not masked, for all masks: [masks, length]."""
    masks = np.array(list(itertools.product([False, True], repeat=LENGTH)))
    batch = text(np.where(masks, tiny.VOCABULARY.mask, tokens))
    logits, _ = made.network.apply({"params": params}, *made.inputs(batch))
    logits = np.asarray(logits, np.float64)
    logits[..., tiny.VOCABULARY.mask] = -np.inf
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -log_p[:, np.arange(LENGTH), tokens]


def bound_by_orders(losses: np.ndarray) -> float:
    """The mean over all orders of the sum of -log p of each token given the earlier ones."""
    total = 0.0
    for order in itertools.permutations(range(LENGTH)):
        hidden = set(range(LENGTH))
        for place in order:
            mask = sum(1 << (LENGTH - 1 - i) for i in hidden)
            total += losses[mask, place]
            hidden.remove(place)
    return total / math.factorial(LENGTH)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_bound_is_the_mean_over_all_orders(schedule: Schedule) -> None:
    made = objective(schedule)
    tokens = np.array([7, 21, 7, 40])
    params = trained(made, text(tokens[None]))
    losses = losses_by_mask(made, params, tokens)
    masks = np.array(list(itertools.product([False, True], repeat=LENGTH)))
    # The expectation over the times by Gauss-Legendre quadrature, exact for the linear schedule.
    points, weights = np.polynomial.legendre.leggauss(60)
    expected = 0.0
    for time, weight in zip((points + 1) / 2, weights / 2, strict=True):
        rate, factor = (float(x) for x in mask_rate(jnp.float32(time), schedule))
        chance = rate ** masks.sum(1) * (1 - rate) ** (LENGTH - masks.sum(1))
        expected += weight * factor * (chance * (losses * masks).sum(1)).sum()
    assert expected == pytest.approx(bound_by_orders(losses), rel=1e-4)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_loss_estimates_the_bound(schedule: Schedule) -> None:
    made = objective(schedule)
    tokens = np.array([7, 21, 7, 40])
    rows = text(np.tile(tokens, (4096, 1)))
    params = trained(made, text(tokens[None]))
    exact = bound_by_orders(losses_by_mask(made, params, tokens)) / LENGTH

    @jax.jit
    def estimate(key: jax.Array) -> Any:
        corrupted, _ = corrupt_batch(made, key, rows)
        return made.loss(params, corrupted, None, None).terms["bound"]

    found = [estimate(jax.random.key(i)) for i in range(20)]
    assert all(count == 4 * 4096 for _, count in found)
    means = np.array([total / count for total, count in found])
    error = means.std(ddof=1) / math.sqrt(len(means))
    assert abs(means.mean() - exact) < 4 * error + 2e-3 * exact
    assert error < 0.02 * exact


def test_what_is_masked() -> None:
    made = objective()
    batch = tiny.batch("electra", 0, rows=64)
    corrupted = jax.device_get(corrupt_batch(made, jax.random.key(0), batch)[0])
    masked, real = corrupted["masked"], batch["segment_ids"] > 0
    assert not masked[~real].any()
    assert (corrupted["tokens"][masked] == tiny.VOCABULARY.mask).all()
    assert (corrupted["tokens"][~masked] == batch["tokens"][~masked]).all()
    rates = (masked & real).sum(1) / real.sum(1)
    assert rates.min() < 0.2 and rates.max() > 0.8  # one rate a row
    np.testing.assert_allclose(1 / corrupted["rate_weight"], rates, atol=0.45)


def test_the_mask_is_never_predicted() -> None:
    made = objective()
    batch = text(np.full((2, LENGTH), 9))
    corrupted, _ = corrupt_batch(made, jax.random.key(3), batch)
    corrupted["masked"] = jnp.ones((2, LENGTH), bool)
    params = trained(made, batch)
    before = made.loss(params, corrupted, None, None).terms["bound"][0]
    bias = params["output_bias"].at[tiny.VOCABULARY.mask].set(50.0)
    after = made.loss({**params, "output_bias": bias}, corrupted, None, None).terms["bound"][0]
    np.testing.assert_allclose(after, before, rtol=1e-6)
