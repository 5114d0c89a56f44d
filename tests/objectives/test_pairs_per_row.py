"""Examples that share a row are corrupted and scored as if each had its own."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.objectives.base import Batch, Objective
from lmjax.objectives.masked import prediction_count
from lmjax.training.step import corrupt_batch
from tests import tiny

ROWS, EXAMPLES = 6, 3
SIZES = np.array([[7, 5, 4], [16, 0, 0], [9, 6, 0], [5, 5, 5], [3, 3, 10], [8, 8, 0]])


def rows(name: str) -> Batch:
    """Clean rows of up to three examples."""
    rng = np.random.default_rng(0)
    batch = {
        field: np.zeros((ROWS, tiny.LENGTH), np.int32)
        for field in ("tokens", "token_types", "segment_ids", "positions")
    }
    batch["starts"] = np.zeros((ROWS, EXAMPLES), np.int32)
    for row, sizes in enumerate(SIZES):
        start = 0
        for number, size in enumerate(sizes[sizes > 0]):
            here = slice(start, start + size)
            batch["tokens"][row, here] = rng.integers(6, tiny.SIZE, size)
            batch["tokens"][row, start] = tiny.VOCABULARY.cls
            batch["token_types"][row, here] = np.arange(size) > size // 2
            batch["segment_ids"][row, here] = number + 1
            batch["positions"][row, here] = np.arange(size)
            batch["starts"][row, number] = start
            start += size
    if name == "bert":
        batch["label"] = np.where(SIZES > 0, rng.integers(0, 2, SIZES.shape), -1).astype(np.int32)
    return batch


def apart(batch: Batch) -> Batch:
    """The examples of a corrupted batch, each in a row of its own."""
    found: dict[str, list[Any]] = {}
    for row, example in np.argwhere(SIZES > 0):
        size, start = SIZES[row, example], np.asarray(batch["starts"])[row, example]
        mine = {}
        for field in ("tokens", "token_types", "positions", "original"):
            if field in batch:
                values = np.asarray(batch[field])[row, start : start + size]
                mine[field] = np.pad(values, (0, tiny.LENGTH - size))
        mine["segment_ids"] = (np.arange(tiny.LENGTH) < size).astype(np.int32)
        at = np.asarray(batch["target_positions"])[row] - start
        mine["target_weights"] = np.asarray(batch["target_weights"])[row] * (at >= 0) * (at < size)
        mine["target_positions"] = np.where(mine["target_weights"] > 0, at, 0)
        mine["targets"] = np.asarray(batch["targets"])[row]
        if "label" in batch:
            mine["label"] = np.asarray(batch["label"])[row, example]
        for field, value in mine.items():
            found.setdefault(field, []).append(value)
    return {field: np.stack(values) for field, values in found.items()}


def corrupted(objective: Objective, batch: Batch) -> Batch:
    return jax.jit(lambda b: corrupt_batch(objective, jax.random.key(0), b)[0])(batch)


def test_masked_lm_and_sentence_loss() -> None:
    objective = tiny.objective("bert")
    batch = corrupted(objective, rows("bert"))
    params = jax.jit(objective.init)(jax.random.key(1), batch)
    params = jax.tree.map(lambda leaf: 5 * leaf if leaf.ndim > 1 else leaf, params)

    @jax.jit
    def terms(batch: Batch) -> Any:
        scored = objective.loss(params, batch, None, None)
        return scored.terms | scored.metrics

    together, alone = terms(batch), terms(apart(batch))
    assert together["sentence"][1] == (SIZES > 0).sum()
    for name in alone:
        np.testing.assert_allclose(together[name], alone[name], rtol=2e-5, err_msg=name)


def test_replaced_token_detection() -> None:
    objective = tiny.objective("electra")
    batch = corrupted(objective, rows("electra"))
    params = jax.jit(objective.init)(jax.random.key(1), batch)
    params = jax.tree.map(lambda leaf: 5 * leaf if leaf.ndim > 1 else leaf, params)
    read, terms, _ = jax.jit(lambda b: objective.generated(params, b, None))(batch)  # type: ignore[attr-defined]
    # The same samples for both, since the samples of a row depend on its slots.
    drawn = {**batch, "tokens": read.tokens}

    @jax.jit
    def logits(batch: Batch) -> jax.Array:
        inputs = objective.inputs(batch)[0]
        return objective.network.apply({"params": params}, inputs, method="discriminate")

    lone = apart({**drawn, "original": batch["original"]})
    found, expected = logits(drawn), logits(lone)
    for place, (row, example) in enumerate(np.argwhere(SIZES > 0)):
        size, start = SIZES[row, example], batch["starts"][row, example]
        np.testing.assert_allclose(
            found[row, start : start + size], expected[place, :size], atol=2e-5
        )

    def generator_loss(batch: Batch) -> Any:
        return objective.generated(params, batch, None)[1]["mlm"]  # type: ignore[attr-defined]

    keys = jax.random.split(jax.random.key(0), (SIZES > 0).sum())
    alone = jax.jit(generator_loss)(apart(batch) | {"sampling_key": keys})
    np.testing.assert_allclose(terms["mlm"], alone, rtol=2e-5)


@pytest.mark.parametrize("masking", ["token", "whole_word", "span"])
@pytest.mark.parametrize(("rate", "most"), [(0.15, 4), (0.5, 8), (0.5, 2), (1.0, 16)])
def test_each_example_has_its_own_share_of_targets(masking: str, rate: float, most: int) -> None:
    objective = tiny.objective(
        "bert",
        masking=masking,
        mask_rate=rate,
        max_predictions=most,
        mask_fraction=1.0,
        random_fraction=0.0,
    )
    clean = rows("bert")
    batch = {name: np.asarray(value) for name, value in corrupted(objective, clean).items()}
    used = batch["target_weights"] > 0
    at = batch["target_positions"]
    tokens = np.asarray(clean["tokens"])
    rest = np.array(tokens)
    for row in range(ROWS):
        mine = at[row][used[row]]
        assert (np.diff(mine) > 0).all()
        assert np.array_equal(batch["targets"][row][used[row]], tokens[row][mine])
        rest[row][mine] = tiny.VOCABULARY.mask
        for example, size in enumerate(SIZES[row]):
            if not size:
                continue
            quota = int(prediction_count(jnp.asarray(size), rate, most))
            found = (np.asarray(clean["segment_ids"])[row][mine] == example + 1).sum()
            quota = min(quota, size - 1)  # not [CLS]
            assert found <= quota if masking == "whole_word" else found == quota
    assert np.array_equal(batch["tokens"], rest)


def test_spans_of_different_examples_are_replaced_apart() -> None:
    objective = tiny.objective(
        "bert",
        masking="span",
        mask_rate=0.5,
        max_predictions=8,
        mask_fraction=0.5,
        random_fraction=0.0,
    )
    clean, same = rows("bert"), []
    corrupt = jax.jit(lambda key: corrupt_batch(objective, key, clean)[0])
    for seed in range(40):
        batch = corrupt(jax.random.key(seed))
        masked = np.asarray(batch["tokens"])[5] == tiny.VOCABULARY.mask  # two examples of 8
        at = np.asarray(batch["target_positions"])[5][np.asarray(batch["target_weights"])[5] > 0]
        first, second = at[at < 8], at[at >= 8]
        same.append(masked[first[0]] == masked[second[0]])
    assert 8 <= sum(same) <= 32
