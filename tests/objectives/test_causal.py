"""GPT's loss against a loop, and the cross entropy that all objectives share."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmjax.models.gpt import Gpt, GptConfig
from lmjax.nn.layers import score_targets
from lmjax.objectives.base import apply
from lmjax.objectives.causal import CausalLM
from tests import tiny


def test_loss_is_the_shifted_log_probability_inside_documents() -> None:
    objective = tiny.objective("gpt")
    assert isinstance(objective, CausalLM)
    batch = tiny.batch("gpt", 0, rows=4)
    batch["segment_ids"][:, 6:] = np.where(batch["segment_ids"][:, 6:] > 0, 2, 0)
    params = objective.init(jax.random.key(0), batch)
    scored = jax.jit(lambda p: objective.loss(p, batch, None, None))(params)
    logits = apply(Gpt(objective.model), params, *objective.inputs(batch))
    log_p = np.asarray(jax.nn.log_softmax(logits), np.float64)
    log_z = np.asarray(jax.nn.logsumexp(logits, axis=-1), np.float64)
    nll, squares, unigram, count = 0.0, 0.0, 0.0, 0
    for row in range(4):
        for t in range(tiny.LENGTH - 1):
            now, then = batch["segment_ids"][row, t : t + 2]
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


@pytest.mark.parametrize("chunk", [1, 4, 15, 100])
def test_chunks_of_the_logits_give_the_same_loss_and_gradient(chunk: int) -> None:
    whole = tiny.objective("gpt")
    batch = tiny.batch("gpt", 0, rows=4)
    params = whole.init(jax.random.key(0), batch)
    found = []
    for objective in (whole, dataclasses.replace(whole, loss_chunk=chunk)):

        def loss(params: Any, objective: Any = objective) -> Any:
            scored = objective.loss(params, batch, None, None)
            return scored.terms["lm"][0] + scored.terms["z_loss"][0], scored

        (_, scored), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        found.append((scored, gradient))
    (scored, gradient), (by_chunks, gradient_by_chunks) = found
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), by_chunks, scored)
    for x, y in zip(*map(jax.tree.leaves, (gradient_by_chunks, gradient)), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5 * float(abs(y).max()) + 1e-7)


def test_chunks_keep_the_logits_out_of_memory() -> None:
    temporary = []
    for chunk in (0, 16):
        base = tiny.objective("gpt")
        size, length, rows = 8_000, 256, 4
        trunk = dataclasses.replace(base.model.trunk, dropout=0.0, attention_dropout=0.0)
        vocabulary = dataclasses.replace(
            base.vocabulary,
            size=size,
            special=np.zeros(size, bool),
            starts_word=np.ones(size, bool),
            log_frequency=np.zeros(size, np.float32),
        )
        model = GptConfig(trunk, max_length=length, vocab_size=size)
        objective = CausalLM(vocabulary=vocabulary, model=model, loss_chunk=chunk)
        shape = jax.ShapeDtypeStruct((rows, length), jnp.int32)
        names = ("tokens", "token_types", "positions", "segment_ids")
        batch = dict.fromkeys(names, shape)

        def gradient(params: Any, batch: Any, objective: CausalLM = objective) -> Any:
            return jax.grad(lambda p: objective.loss(p, batch, None, None).terms["lm"][0])(params)

        params = jax.eval_shape(objective.init, jax.random.key(0), batch)
        compiled = jax.jit(gradient).lower(params, batch).compile()
        temporary.append(compiled.memory_analysis().temp_size_in_bytes)
    whole, chunked = temporary
    logits = 4 * rows * length * size
    assert whole > logits
    assert chunked < logits / 2


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
