"""ELECTRA: what the discriminator is told, and what it must not tell the generator."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.models.electra import standalone
from lmjax.objectives.base import Batch, Scored, apply
from lmjax.objectives.rtd import ReplacedTokenDetection, sample_replacements
from lmjax.training.step import total_loss
from tests import tiny

OBJECTIVE = tiny.objective("electra")
assert isinstance(OBJECTIVE, ReplacedTokenDetection)


@pytest.fixture(scope="module")
def batch() -> Batch:
    keys = jax.random.split(jax.random.key(5), tiny.BATCH)
    return jax.vmap(OBJECTIVE.corrupt)(keys, tiny.batch("electra", 0))


@pytest.fixture(scope="module")
def params(batch: Batch) -> Any:
    return jax.jit(OBJECTIVE.init)(jax.random.key(0), batch)


@pytest.fixture(scope="module")
def gradients(params: Any, batch: Batch) -> tuple[Scored, dict[str, Any]]:
    """Scores, and the gradient of each term by itself."""

    def term(params: Any, name: str) -> tuple[jax.Array, Scored]:
        scored = OBJECTIVE.loss(params, batch, None, None)
        return scored.terms[name][0], scored

    @jax.jit
    def both(params: Any) -> Any:
        (_, scored), mlm = jax.value_and_grad(term, has_aux=True)(params, "mlm")
        return scored, {"mlm": mlm, "rtd": jax.grad(lambda p: term(p, "rtd")[0])(params)}

    return both(params)


def norm(tree: Any) -> float:
    return float(sum(jnp.abs(leaf).sum() for leaf in jax.tree.leaves(tree)))


def test_nothing_flows_back_through_the_sampling(gradients: Any) -> None:
    _, found = gradients
    for part in ("encoder", "transform", "output_bias"):
        assert norm(found["rtd"]["generator"][part]) == 0.0
        assert norm(found["mlm"]["generator"][part]) > 0.0
    for part in ("encoder", "dense", "prediction"):
        assert norm(found["mlm"]["discriminator"][part]) == 0.0
        assert norm(found["rtd"]["discriminator"][part]) > 0.0


def test_both_terms_train_the_shared_embeddings(gradients: Any) -> None:
    _, found = gradients
    assert norm(found["mlm"]["embeddings"]) > 0.0
    assert norm(found["rtd"]["embeddings"]) > 0.0


def test_embeddings_apart_are_trained_apart(batch: Batch) -> None:
    model = dataclasses.replace(OBJECTIVE.model, share_embeddings=False)
    objective = dataclasses.replace(OBJECTIVE, model=model)
    params = jax.jit(objective.init)(jax.random.key(0), batch)

    @jax.jit
    def gradients(params: Any) -> Any:
        def term(params: Any, name: str) -> jax.Array:
            return objective.loss(params, batch, None, None).terms[name][0]

        return {name: jax.grad(term)(params, name) for name in ("mlm", "rtd")}

    found = gradients(params)
    own = found["rtd"]["discriminator"]["encoder"]["embeddings"]
    assert norm(found["rtd"]["embeddings"]) == 0.0 and norm(own) > 0.0
    assert norm(found["mlm"]["embeddings"]) > 0.0 and norm(found["mlm"]["discriminator"]) == 0.0
    kept = standalone(params, "discriminator")["encoder"]["embeddings"]
    assert kept is params["discriminator"]["encoder"]["embeddings"]


def test_terms_count_what_the_paper_counts(gradients: Any, batch: Batch) -> None:
    scored, _ = gradients
    assert scored.terms["mlm"][1] == batch["target_weights"].sum()
    assert scored.terms["rtd"][1] == (batch["segment_ids"] > 0).sum()  # [CLS], [SEP] included
    mlm, rtd = (total / count for total, count in (scored.terms["mlm"], scored.terms["rtd"]))
    counts = {name: count for name, (_, count) in scored.terms.items()}
    np.testing.assert_allclose(total_loss(OBJECTIVE, scored, counts), mlm + 50 * rtd, rtol=1e-6)
    assert abs(float(rtd) - np.log(2)) < 0.2


def test_replacements_are_labelled_by_a_plain_loop(batch: Batch) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(tiny.BATCH, 4, tiny.SIZE)).astype(np.float32)
    # A sure generator: right in the first slot, wrong in the second.
    targets = np.asarray(batch["targets"])
    rows = np.arange(tiny.BATCH)
    logits[rows, 0, targets[:, 0]] = 100.0
    wrong = 6 + (targets[:, 1] - 6 + 1) % (tiny.SIZE - 6)
    logits[rows, 1, wrong] = 100.0
    tokens = np.asarray(sample_replacements(jnp.asarray(logits), batch))
    original, documents = np.asarray(batch["original"]), np.asarray(batch["segment_ids"])
    for row in range(tiny.BATCH):
        used = np.asarray(batch["target_weights"][row]) > 0
        positions = np.asarray(batch["target_positions"][row])[used]
        for position in range(tiny.LENGTH):
            if position not in positions:
                assert tokens[row, position] == original[row, position]
        assert tokens[row, positions[0]] == original[row, positions[0]]  # counts as original
        if used[1]:
            assert tokens[row, positions[1]] == wrong[row] != original[row, positions[1]]
        assert (documents[row, positions] > 0).all()


def test_the_discriminator_is_told_which_tokens_differ(
    gradients: Any, params: Any, batch: Batch
) -> None:
    scored, _ = gradients
    network = OBJECTIVE.network

    @jax.jit
    def outputs() -> tuple[jax.Array, jax.Array]:
        inputs, where = OBJECTIVE.inputs(batch)
        logits = apply(network, params, inputs, where, method="generate")
        tokens = sample_replacements(logits, batch)
        read = inputs.replace(tokens=tokens)
        return tokens, apply(network, params, read, method="discriminate")

    tokens, logits = jax.device_get(outputs())
    loss, replaced, right, real = 0.0, 0, 0, 0
    for row in range(tiny.BATCH):
        for i in range(tiny.LENGTH):
            if batch["segment_ids"][row, i] == 0:
                continue
            fake = tokens[row, i] != batch["original"][row, i]
            p = 1 / (1 + np.exp(-np.float64(logits[row, i])))
            loss -= np.log(p if fake else 1 - p)
            real, replaced, right = real + 1, replaced + fake, right + ((p > 0.5) == fake)
    assert replaced > tiny.BATCH  # an untrained generator is nearly always wrong
    np.testing.assert_allclose(scored.terms["rtd"][0], loss, rtol=1e-5)
    assert scored.terms["rtd"][1] == real
    assert scored.metrics["replaced"][0] == replaced
    assert scored.metrics["rtd_accuracy"][0] == right
    assert scored.metrics["rtd_recall"][1] == replaced


def test_samples_follow_the_generators_softmax(batch: Batch) -> None:
    many = 3000
    logits = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
    one: Batch = {
        "sampling_key": jax.random.split(jax.random.key(1), many),
        "original": jnp.full((many, 3), 9),
        "target_positions": jnp.ones((many, 1), jnp.int32),
        "target_weights": jnp.ones((many, 1)),
    }
    tokens = sample_replacements(jnp.broadcast_to(logits, (many, 1, 4)), one)
    counts, expected = np.bincount(np.asarray(tokens[:, 1]), minlength=4), many * np.exp(logits)
    assert (np.square(counts - expected) / expected).sum() < 16.3  # chi-square, 3 degrees, 99.9%
    assert (tokens[:, [0, 2]] == 9).all()


def test_mask_fraction_leaves_fifteen_percent_in_place() -> None:
    many = 3000
    keys = jax.random.split(jax.random.key(2), many)
    example = {k: jnp.asarray(v[1]) for k, v in tiny.batch("electra", 1).items()}
    made = jax.jit(jax.vmap(lambda k: OBJECTIVE.corrupt(k, example)))(keys)
    rows = np.arange(many)[:, None]
    used = np.asarray(made["target_weights"]) > 0
    at = np.asarray(made["tokens"])[rows, np.asarray(made["target_positions"])][used]
    masked = at == tiny.VOCABULARY.mask
    assert abs(masked.mean() - 0.85) < 0.02
    np.testing.assert_array_equal(at[~masked], np.asarray(made["targets"])[used][~masked])
