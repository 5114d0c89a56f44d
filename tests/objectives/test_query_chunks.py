"""Attention in chunks of queries is the same function, dropout included."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from lmjax.training.step import corrupt_batch, total_loss
from tests import tiny


@pytest.mark.parametrize(
    "name",
    [*tiny.NAMES[:3], pytest.param("electra", marks=pytest.mark.slow)],  # BERT's attention twice
)
def test_chunks_change_neither_loss_nor_gradient_nor_memory(name: str) -> None:
    objective = tiny.objective(name)
    batch, seeds = corrupt_batch(objective, jax.random.key(1), tiny.batch(name, 0))
    params = objective.init(jax.random.key(0), batch)
    mems = jax.tree.map(
        lambda x: jax.random.normal(jax.random.key(2), x.shape), objective.init_mems(tiny.BATCH)
    )

    def run(query_chunk: int) -> Any:
        trunk = dataclasses.replace(objective.model.trunk, query_chunk=query_chunk)
        model = dataclasses.replace(objective.model, trunk=trunk)
        chunked = dataclasses.replace(objective, model=model)

        def loss(params: Any) -> Any:
            scored = chunked.loss(params, batch, mems, seeds)
            counts = {term: count for term, (_, count) in scored.terms.items()}
            return total_loss(objective, scored, counts), scored.mems

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    # 3 divides neither the length, 16, nor XLNet's 5 targets.
    for a, b in zip(*map(jax.tree.leaves, (run(0), run(3))), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-6)
