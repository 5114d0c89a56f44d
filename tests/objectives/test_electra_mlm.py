"""The models between masked LM and ELECTRA: their losses by plain loops, and what they train."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.models.network import TextInputs
from lmjax.objectives.base import Batch, Scored, apply
from lmjax.objectives.electra_mlm import AllTokensMLM, ReplaceMLM, log_mixture
from lmjax.objectives.rtd import ReplacedTokenDetection, chosen_positions
from tests import tiny

ELECTRA = tiny.objective("electra")
assert isinstance(ELECTRA, ReplacedTokenDetection)
_FIELDS: dict[str, Any] = {
    "vocabulary": tiny.VOCABULARY,
    "model": ELECTRA.model,
    "max_predictions": 4,
}
OBJECTIVES = {"replace": ReplaceMLM(**_FIELDS), "all": AllTokensMLM(**_FIELDS)}


@pytest.fixture(scope="module")
def batch() -> Batch:
    keys = jax.random.split(jax.random.key(5), tiny.BATCH)
    return jax.vmap(ELECTRA.corrupt)(keys, tiny.batch("electra", 0))


@dataclasses.dataclass
class Found:
    """What a network makes of the batch, and the gradient of its second term."""

    params: Any
    scored: Scored
    read: TextInputs
    logits: np.ndarray
    copies: np.ndarray | None
    gradient: Any


@pytest.fixture(scope="module", params=list(OBJECTIVES))
def found(request: pytest.FixtureRequest, batch: Batch) -> tuple[ReplaceMLM, Found]:
    objective = OBJECTIVES[request.param]
    params = jax.jit(objective.init)(jax.random.key(0), batch)

    def second(params: Any) -> Any:
        scored = objective.loss(params, batch, None, None)
        return scored.terms["identity"][0], scored

    @jax.jit
    def all_of(params: Any) -> Any:
        (_, scored), gradient = jax.value_and_grad(second, has_aux=True)(params)
        read, _, _ = objective.generated(params, batch, None)
        outputs = apply(objective.network, params, read, None, method="identify")
        return scored, read, *outputs, gradient

    scored, read, logits, copies, gradient = jax.device_get(all_of(params))
    return objective, Found(params, scored, read, logits, copies, gradient)


def softmax(logits: np.ndarray) -> np.ndarray:
    p = np.exp(logits.astype(np.float64) - logits.max())
    return p / p.sum()


def test_the_loss_is_that_of_a_plain_loop(found: tuple[ReplaceMLM, Found], batch: Batch) -> None:
    objective, f = found
    nats, count = 0.0, 0
    for row in range(tiny.BATCH):
        chosen = np.asarray(batch["target_positions"][row])[
            np.asarray(batch["target_weights"][row]) > 0
        ]
        for i in range(tiny.LENGTH):
            if batch["segment_ids"][row, i] == 0:
                assert i not in chosen
                continue
            token = int(batch["original"][row, i])
            p = softmax(f.logits[row, i])[token]
            if isinstance(objective, AllTokensMLM):
                assert f.copies is not None
                d = 1 / (1 + np.exp(-np.float64(f.copies[row, i])))
                p = d * (f.read.tokens[row, i] == token) + (1 - d) * p
            elif i not in chosen:
                continue
            nats, count = nats - np.log(p), count + 1
    total, counted = f.scored.terms["identity"]
    assert counted == count
    np.testing.assert_allclose(total, nats, rtol=1e-5)


def test_the_mixture_is_a_distribution() -> None:
    logits = np.random.default_rng(0).normal(size=7).astype(np.float32)
    for copies in (-3.0, 0.0, 5.0):
        for read in range(7):
            logs = log_mixture(
                jnp.full(7, copies), jnp.arange(7) == read, jax.nn.log_softmax(jnp.asarray(logits))
            )
            assert abs(float(jnp.exp(logs).sum()) - 1) < 1e-6
    gradient = jax.grad(lambda c: log_mixture(c, jnp.array(False), jnp.array(-2.0)))(0.5)
    np.testing.assert_allclose(gradient, -1 / (1 + np.exp(-0.5)), rtol=1e-6)


def test_nothing_flows_back_through_the_sampling(found: tuple[ReplaceMLM, Found]) -> None:
    gradient = found[1].gradient

    def norm(tree: Any) -> float:
        return sum(float(np.abs(leaf).sum()) for leaf in jax.tree.leaves(tree))

    assert norm(gradient["generator"]) == 0.0
    for part in {"embeddings", "language_model", *({"copying"} & set(gradient))}:
        assert all(norm(leaf) > 0.0 for leaf in jax.tree.leaves(gradient[part])), part


def test_the_generator_is_electras(found: tuple[ReplaceMLM, Found], batch: Batch) -> None:
    objective, f = found
    electra = jax.jit(ELECTRA.init)(jax.random.key(1), batch)
    params = {**electra, "generator": f.params["generator"], "embeddings": f.params["embeddings"]}
    theirs = ELECTRA.loss(params, batch, None, None)
    for name in ("mlm_accuracy", "replaced"):
        assert f.scored.metrics[name] == theirs.metrics[name]
    np.testing.assert_allclose(f.scored.terms["mlm"], theirs.terms["mlm"], rtol=1e-6)
    assert objective.weights == {"mlm": 1.0, "identity": 1.0}


def test_what_is_kept_is_a_language_model_of_its_own(
    found: tuple[ReplaceMLM, Found], batch: Batch
) -> None:
    objective, f = found
    network, params = objective.network.part(f.params, "discriminator")
    everywhere = jnp.broadcast_to(jnp.arange(tiny.LENGTH), f.read.tokens.shape)
    logits = apply(network, params, f.read, everywhere)
    np.testing.assert_allclose(logits, f.logits, atol=1e-5)


def test_electra_15_judges_the_chosen_positions_alone(batch: Batch) -> None:
    chosen = np.zeros((tiny.BATCH, tiny.LENGTH), bool)
    for row, used in enumerate(np.asarray(batch["target_weights"]) > 0):
        chosen[row, np.asarray(batch["target_positions"][row])[used]] = True
    np.testing.assert_array_equal(chosen_positions(batch), chosen)
    objective = dataclasses.replace(ELECTRA, detects="chosen")
    params = jax.jit(objective.init)(jax.random.key(0), batch)

    @jax.jit
    def outputs() -> Any:
        read, _, _ = objective.generated(params, batch, None)
        detected = apply(objective.network, params, read, method="discriminate")
        return objective.loss(params, batch, None, None), read.tokens, detected

    scored, read, detected = jax.device_get(outputs())
    replaced = read != np.asarray(batch["original"])
    p = 1 / (1 + np.exp(-detected.astype(np.float64)))
    nats = -np.log(np.where(replaced, p, 1 - p))[chosen].sum()
    np.testing.assert_allclose(scored.terms["rtd"][0], nats, rtol=1e-5)
    assert scored.terms["rtd"][1] == chosen.sum()
    assert scored.metrics["rtd_accuracy"][0] == ((p > 0.5) == replaced)[chosen].sum()
