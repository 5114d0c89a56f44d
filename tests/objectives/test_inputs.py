"""What each objective reads of a batch, and what it must not see."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from lmjax.models.gpt import Gpt
from lmjax.objectives.base import Batch, Objective, apply
from lmjax.training.step import corrupt_batch
from tests import tiny

READ = {
    "bert": ("token_types", "positions", "label"),
    "gpt": ("positions",),
    "xlnet": ("token_types", "direction"),
    "electra": ("token_types", "positions"),
}


@functools.cache
def prepared(name: str) -> tuple[Objective, Any, Batch, Callable[..., Any]]:
    """An objective, its parameters, a corrupted batch of two documents a row, its terms."""
    objective = tiny.objective(name)
    batch = tiny.batch(name, 0, rows=4)
    batch["segment_ids"][:, 9:13] = 2
    batch["segment_ids"][:, 13:] = 0
    batch["positions"][:, 9:] -= 9
    corrupted, _ = jax.jit(lambda b: corrupt_batch(objective, jax.random.key(0), b))(batch)
    params = jax.jit(objective.init)(jax.random.key(1), corrupted)
    # Larger weights than the initial ones, so that what is read shows.
    params = jax.tree.map(lambda leaf: 10 * leaf if leaf.ndim > 1 else leaf, params)
    mems = objective.init_mems(4)
    terms = jax.jit(lambda b: objective.loss(params, b, mems, None).terms)
    return objective, params, corrupted, terms


@pytest.mark.parametrize(
    ("name", "field"), [(name, field) for name, fields in READ.items() for field in fields]
)
def test_what_is_read_makes_a_difference(name: str, field: str) -> None:
    _, _, batch, terms = prepared(name)
    values = np.asarray(batch[field])
    other = {"token_types": 1 - np.arange(tiny.LENGTH) % 2, "positions": 15 - values}
    changed = {**batch, field: np.broadcast_to(other.get(field, 1 - values), values.shape)}
    if field == "direction":
        changed[field] = -values
    before, after = terms(batch), terms(changed)
    assert any(abs(after[term][0] - before[term][0]) > 1e-4 for term in before)


@pytest.mark.parametrize("name", ["bert", "xlnet", "electra"])
def test_other_documents_and_padding_are_not_seen(name: str) -> None:
    objective, _, batch, terms = prepared(name)
    documents = np.asarray(batch["segment_ids"])
    at = np.asarray(batch["target_mapping" if name == "xlnet" else "target_positions"])
    first = np.take_along_axis(documents, at, axis=1) == 1
    batch = {**batch, "target_weights": batch["target_weights"] * first}
    # A different token wherever the document is another; the targets' own stay.
    tokens = np.asarray(batch["tokens"])
    elsewhere = {**batch, "tokens": np.where(documents == 1, tokens, 6 + (tokens + 7) % 40)}
    within = {**batch, "tokens": np.where(documents == 2, tokens, 6 + (tokens + 7) % 40)}
    before, count = terms(batch)[objective.headline]
    assert count > 0
    np.testing.assert_allclose(terms(elsewhere)[objective.headline][0], before, rtol=1e-6)
    assert abs(terms(within)[objective.headline][0] - before) > 1e-3


def test_gpt_sees_what_came_before_in_its_document_and_no_more() -> None:
    objective, params, batch, _ = prepared("gpt")

    @jax.jit
    def outputs(tokens: jax.Array) -> jax.Array:
        inputs = objective.inputs({**batch, "tokens": tokens})
        return apply(Gpt(objective.model), params, *inputs)

    tokens, documents = np.asarray(batch["tokens"]), np.asarray(batch["segment_ids"])[0]
    before = np.asarray(outputs(tokens))[0]
    for position in range(13):
        other = tokens.copy()
        other[0, position] = 6 + (other[0, position] + 7) % 40
        changed = (np.asarray(outputs(other))[0] != before).any(-1)
        sees = (documents == documents[position]) & (np.arange(tiny.LENGTH) >= position)
        np.testing.assert_array_equal(changed[:13], sees[:13])


def test_bert_averages_masked_tokens_and_sentences_apart() -> None:
    objective, params, batch, terms = prepared("bert")
    inputs = objective.inputs(batch)
    logits, sentence = jax.jit(lambda p: apply(objective.network, p, *inputs))(params)
    log_p, log_q = (np.asarray(jax.nn.log_softmax(x), np.float64) for x in (logits, sentence))
    expected = {"mlm": [0.0, 0], "sentence": [0.0, 0]}
    for row in range(4):
        for slot in range(4):
            if batch["target_weights"][row, slot]:
                expected["mlm"][0] -= log_p[row, slot, batch["targets"][row, slot]]
                expected["mlm"][1] += 1
        expected["sentence"][0] -= log_q[row, batch["label"][row]]
        expected["sentence"][1] += 1
    for term, (total, count) in terms(batch).items():
        np.testing.assert_allclose(total, expected[term][0], rtol=1e-5)
        assert count == expected[term][1]
