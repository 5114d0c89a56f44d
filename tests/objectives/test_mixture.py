"""Mixtures of objectives."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import lmjax
from lmjax.errors import ConfigError
from lmjax.objectives.mixture import Mixture
from lmjax.training.loop import pretrain
from lmjax.training.plan import make_plan
from lmjax.training.step import corrupt_batch, total_loss
from tests import tiny
from tests.runs import config, write_text

CAUSAL = {"type": "lmjax.objectives.causal.CausalLM"}
MASKED = {
    "type": "lmjax.objectives.causal_masked.CausalMaskedLM",
    "causal_fraction": 0.0,
    "max_predictions": 4,
}


def test_loss_and_gradient_are_the_weighted_sum_of_the_parts_on_their_rows() -> None:
    objective = tiny.objective("mixture")
    assert isinstance(objective, Mixture)
    batch = {name: jnp.asarray(x) for name, x in tiny.batch("gpt", 0).items()}
    key = jax.random.key(1)
    corrupted, _ = corrupt_batch(objective, key, batch)
    params = objective.init(jax.random.key(0), corrupted)

    def total(objective: Any, params: Any, batch: Any) -> jax.Array:
        scored = objective.loss(params, batch, None, None)
        counts = {name: count for name, (_, count) in scored.terms.items()}
        return total_loss(objective, scored, counts)

    def separate(params: Any) -> jax.Array:
        loss = jnp.float32(0)
        for name, rows, share in (("causal", slice(0, 4), 0.25), ("masked", slice(4, 16), 0.75)):
            part = objective.objectives[name]
            own, _ = corrupt_batch(part, key, batch)
            loss += share * total(part, params, {k: x[rows] for k, x in own.items()})
        return loss

    found = jax.jit(jax.value_and_grad(lambda p: total(objective, p, corrupted)))(params)
    expected = jax.jit(jax.value_and_grad(separate))(params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), found, expected
    )
    # z_loss, a weighted term of one part, counts.
    assert float(objective.weight("causal/z_loss")) == pytest.approx(0.025)


def test_a_run_trains_all_parts_and_its_model_opens(tmp_path: pathlib.Path) -> None:
    made = config(write_text(tmp_path / "text.txt"))
    made["objective"] = {
        "type": "lmjax.objectives.mixture.Mixture",
        "parts": {"causal": CAUSAL, "masked": MASKED},
        "shares": {"masked": 3},
    }
    made["model"] = {"trunk": {**made["model"]["trunk"], "norm": "pre"}, "max_length": 32}
    made["data"]["examples"] = {"type": "lmjax.data.examples.Packed", "length": 32}
    made["training"] |= {"steps": 60, "batch_size": 4, "checkpoint_every": 0, "eval_every": 0}
    result = pretrain(ConfigDict(made), tmp_path / "run")
    first, last = (line for line in result.records if line["split"] == "validation")
    assert last["causal/lm"] < first["causal/lm"] - 0.3
    assert last["masked/masked"] < first["masked/masked"] - 0.1
    expected = 0.25 * last["causal/lm"] + 0.75 * last["masked/lm"]
    assert last["loss"] == pytest.approx(expected, rel=1e-3)
    (scores,) = lmjax.token_scores(lmjax.load(tmp_path / "run"), ["abc abd."])
    assert np.isfinite(scores).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"parts": {}}, r"config\.objective\.parts: empty"),
        ({"shares": {"maksed": 1}}, r"config\.objective\.shares\.maksed: not one of the parts"),
        ({"shares": {"masked": 0}}, r"config\.objective\.shares\.masked: must be at least 1"),
        ({"parts": {"a": {**CAUSAL, "x": 1}}}, r"config\.objective\.parts\.a\.x: unknown field"),
        ({"shares": {"masked": 8}}, r"config\.training\.batch_size: a micro-batch of 8 rows"),
    ],
)
def test_bad_mixtures_are_refused(fields: dict[str, Any], message: str) -> None:
    made = config(pathlib.Path("missing.txt"))
    made["objective"] = {
        "type": "lmjax.objectives.mixture.Mixture",
        "parts": {"causal": CAUSAL, "masked": MASKED},
        **fields,
    }
    made["model"] = {"trunk": made["model"]["trunk"]}
    with pytest.raises(ConfigError, match=message):
        make_plan(ConfigDict(made))


def test_parts_of_other_parameters_are_refused() -> None:
    parts = {"causal": CAUSAL, "masked": {"type": "lmjax.objectives.masked.MaskedLM"}}
    model = tiny.objective("gpt").model
    with pytest.raises(ConfigError, match="masked"):
        objective = Mixture(vocabulary=tiny.VOCABULARY, model=model, parts=parts)
        batch = {name: jnp.asarray(x) for name, x in tiny.batch("bert", 0).items()}
        objective.init(jax.random.key(0), corrupt_batch(objective, jax.random.key(1), batch)[0])
