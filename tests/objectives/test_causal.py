"""GPT's loss against a loop, and the cross entropy that all objectives share."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lmjax.models.gpt import Gpt
from lmjax.objectives.base import apply, score_targets
from lmjax.objectives.causal import CausalLM
from tests import tiny


def test_loss_is_the_shifted_log_probability_inside_documents() -> None:
    objective = tiny.objective("gpt")
    assert isinstance(objective, CausalLM)
    batch = tiny.batch("gpt", 0, rows=4)
    batch["documents"][:, 6:] = np.where(batch["documents"][:, 6:] > 0, 2, 0)
    params = objective.init(jax.random.key(0), batch)
    scored = jax.jit(lambda p: objective.loss(p, batch, None, None))(params)
    logits = apply(Gpt(objective.model), params, *objective.inputs(batch))
    log_p = np.asarray(jax.nn.log_softmax(logits), np.float64)
    log_z = np.asarray(jax.nn.logsumexp(logits, axis=-1), np.float64)
    nll, squares, unigram, count = 0.0, 0.0, 0.0, 0
    for row in range(4):
        for t in range(tiny.LENGTH - 1):
            now, then = batch["documents"][row, t : t + 2]
            if now == then and then > 0:
                target = batch["tokens"][row, t + 1]
                nll -= log_p[row, t, target]
                squares += log_z[row, t] ** 2
                unigram -= tiny.VOCABULARY.log_frequency[target]
                count += 1
    for (total, n), expected in (
        (scored.terms["lm"], nll),
        (scored.terms["z_loss"], squares),
        (scored.metrics["unigram"], unigram),
    ):
        assert n == count
        np.testing.assert_allclose(total, expected, rtol=1e-5)


def test_score_targets_and_its_gradient() -> None:
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(5, 7, 11)) * 4, jnp.float32)
    targets = jnp.asarray(rng.integers(0, 11, (5, 7)))
    weights = jnp.asarray(rng.random((5, 7)), jnp.float32)
    losses, hits = score_targets(logits, targets)
    reference = optax.softmax_cross_entropy_with_integer_labels
    np.testing.assert_allclose(losses, reference(logits, targets), atol=1e-5)
    np.testing.assert_array_equal(hits, logits.argmax(-1) == targets)
    found = jax.grad(lambda x: (score_targets(x, targets)[0] * weights).sum())(logits)
    expected = jax.grad(lambda x: (reference(x, targets) * weights).sum())(logits)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_score_targets_survives_large_logits() -> None:
    losses, _ = score_targets(jnp.array([[1e4, 0.0], [-1e30, 5.0]]), jnp.array([0, 1]))
    np.testing.assert_array_equal(losses, [0.0, 0.0])
