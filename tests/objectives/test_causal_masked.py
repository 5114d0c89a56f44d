"""GPT-BERT's objective: both kinds of rows, what they see, and the expectation of the mixture."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.models.gpt import GptConfig
from lmjax.objectives.base import Batch, apply
from lmjax.objectives.causal import CausalLM
from lmjax.objectives.causal_masked import CausalMaskedLM
from lmjax.training.step import corrupt_batch
from tests import tiny

MODEL = GptConfig(tiny.TRUNK, max_length=tiny.LENGTH, vocab_size=tiny.SIZE)


def objective(causal_fraction: float, **settings: Any) -> CausalMaskedLM:
    own = {"mask_rate": 0.3, "max_predictions": 6, **settings}
    return CausalMaskedLM(
        vocabulary=tiny.VOCABULARY, model=MODEL, causal_fraction=causal_fraction, **own
    )


def text(rows: int = 8) -> Batch:
    """Two documents a row, without padding."""
    batch: Any = tiny.batch("gpt", 1, rows=rows)
    batch["segment_ids"][:] = 1
    batch["segment_ids"][:, 9:] = 2
    batch["positions"][:, 9:] -= 9
    return batch


def corrupted(made: CausalMaskedLM, batch: Batch, seed: int = 0) -> Batch:
    return jax.jit(lambda b: corrupt_batch(made, jax.random.key(seed), b)[0])(batch)


@pytest.fixture(scope="module")
def params() -> Any:
    made = objective(0.5)
    found = jax.jit(made.init)(jax.random.key(1), corrupted(made, text()))
    return jax.tree.map(lambda leaf: 10 * leaf if leaf.ndim > 1 else leaf, found)


def row_losses(made: CausalMaskedLM, params: Any, batch: Batch) -> np.ndarray:
    one = jax.jit(lambda b: made.loss(params, b, None, None).terms["lm"][0])
    return np.array(
        [one({k: v[i : i + 1] for k, v in batch.items()}) for i in range(len(batch["tokens"]))]
    )


def test_causal_rows_are_those_of_a_causal_lm(params: Any) -> None:
    made, batch = objective(1.0), text()
    total, count = made.loss(params, corrupted(made, batch), None, None).terms["lm"]
    causal = CausalLM(vocabulary=tiny.VOCABULARY, model=MODEL)
    expected, tokens = causal.loss(params, jax.tree.map(jnp.asarray, batch), None, None).terms["lm"]
    assert count == 8 and tokens == 8 * (tiny.LENGTH - 2)
    np.testing.assert_allclose(total / count, expected / tokens, rtol=1e-5)


def test_masked_tokens_are_predicted_at_the_position_before_them(params: Any) -> None:
    made, batch = objective(0.0, random_fraction=0.0, mask_fraction=1.0), text()
    read = jax.device_get(corrupted(made, batch))
    predicted = read["predicted"]
    assert (read["tokens"][predicted] == tiny.VOCABULARY.mask).all()
    assert not predicted[:, [0, 9]].any()  # the first tokens of documents
    assert 8 < predicted.sum() < 8 * 6
    logits = np.asarray(apply(made.network, params, *made.inputs(read)))
    log_p = jax.nn.log_softmax(logits)
    expected = []
    for row, places in enumerate(predicted):
        at = np.flatnonzero(places)
        expected.append(-np.asarray(log_p[row, at - 1, batch["tokens"][row, at]]).mean())
    np.testing.assert_allclose(row_losses(made, params, read), expected, rtol=1e-4)


def test_a_masked_row_reads_both_sides_of_its_document(params: Any) -> None:
    made, batch = objective(0.0), text()
    read = corrupted(made, batch)

    @jax.jit
    def logits(tokens: jax.Array) -> jax.Array:
        return apply(made.network, params, *made.inputs({**read, "tokens": tokens}))

    before = logits(read["tokens"])
    for place in (4, 12):
        moved = logits(read["tokens"].at[:, place].set(6 + (read["tokens"][:, place] + 3) % 40))
        seen = np.asarray(jnp.abs(moved - before).max((0, 2)) > 1e-4)
        assert np.array_equal(seen, (np.arange(tiny.LENGTH) < 9) == (place < 9))


def test_a_mixture_takes_each_row_from_one_of_the_two(params: Any) -> None:
    batch = text(rows=64)
    mixed = objective(0.25)
    read = corrupted(mixed, batch, 3)
    alone = {
        kind: row_losses(made := objective(float(kind)), params, corrupted(made, batch, 3))
        for kind in (True, False)
    }
    is_causal = np.asarray(read["is_causal"])
    assert 5 < is_causal.sum() < 30
    found = row_losses(mixed, params, read)
    np.testing.assert_allclose(found, np.where(is_causal, alone[True], alone[False]), rtol=1e-5)
    total, count = mixed.loss(params, read, None, None).terms["lm"]
    np.testing.assert_allclose(total / count, found.mean(), rtol=1e-5)
