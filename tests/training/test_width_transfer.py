"""The maximal update parametrisation: a coordinate check (Yang et al. 2022, App. D.1).

In a few steps at one learning rate, what a network computes moves no further when it is wider. In
the usual parametrisation it does.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from configs import quickstart
from lmjax.errors import ConfigError
from lmjax.models.bert import BertConfig
from lmjax.models.electra import ElectraConfig
from lmjax.models.gpt import GptConfig
from lmjax.nn.trunk import TransformerConfig
from lmjax.objectives.base import apply
from lmjax.training.optimizers import OptimizerConfig, make_optimizer
from lmjax.training.plan import make_plan
from lmjax.training.step import total_loss
from tests import tiny

WIDTHS, BASE, STEPS = (32, 96, 256), 32, 4


def trunk(width: int, base: int, norm: Any) -> TransformerConfig:
    return TransformerConfig(
        layers=1, hidden_size=width, heads=width // 16, intermediate_size=4 * width,
        norm=norm, initial_std=0.1, dropout=0.0, attention_dropout=0.0, base_width=base,
    )  # fmt: skip


def moves(name: str, width: int, base: int) -> float:
    """How far logits have moved after STEPS: the mean of |after - before|."""
    norm: Any = "pre" if name == "gpt" else "post"
    kind: Any = GptConfig if name == "gpt" else BertConfig
    model = kind(trunk(width, base, norm), max_length=tiny.LENGTH, vocab_size=tiny.SIZE)
    objective = tiny.objective(name, model=model)
    keys = jax.random.split(jax.random.key(5), tiny.BATCH)
    batch = jax.vmap(objective.corrupt)(keys, tiny.batch(name, 0))
    params = jax.jit(objective.init)(jax.random.key(0), batch)
    config = OptimizerConfig(
        learning_rate=3e-3,
        schedule="constant",
        bias_correction=True,
        kernel_share=base / width if base else 1.0,
    )
    transformation, _ = make_optimizer(config, STEPS, params)

    @jax.jit
    def logits(params: Any) -> jax.Array:
        network: Any = objective.network  # type: ignore[attr-defined]
        found = apply(network, params, *objective.inputs(batch))  # type: ignore[attr-defined]
        return found[0] if isinstance(found, tuple) else found

    def loss(params: Any) -> jax.Array:
        scored = objective.loss(params, batch, None, None)
        return total_loss(objective, scored, {n: c for n, (_, c) in scored.terms.items()})

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        updates, state = transformation.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    start, state = params, transformation.init(params)
    for _ in range(STEPS):
        params, state = step(params, state)
    return float(jnp.abs(logits(params) - logits(start)).mean())


def slope(values: list[float]) -> float:
    """Of the logarithm over that of the width."""
    return float(np.polyfit(np.log(WIDTHS), np.log(values), 1)[0])


@pytest.mark.parametrize("name", ["gpt", pytest.param("bert", marks=pytest.mark.slow)])
def test_coordinate_check(name: str) -> None:
    ours = [moves(name, width, BASE) for width in WIDTHS]
    usual = [moves(name, width, 0) for width in WIDTHS]
    # What is random in logits dies away with the width; what is learnt stays.
    assert -0.5 < slope(ours) < 0.1
    assert slope(usual) > 0.5
    assert ours[0] == usual[0]


def test_what_a_base_width_changes() -> None:
    usual, wide = trunk(64, 0, "pre"), trunk(64, 16, "pre")
    assert (usual.width_ratio, wide.width_ratio) == (1.0, 4.0)
    key = jax.random.key(0)
    kernels = [t.kernel_initializer()(key, (64, 64), jnp.float32) for t in (usual, wide)]
    np.testing.assert_allclose(kernels[0], 2 * kernels[1], rtol=1e-6)
    tables = [t.initializer()(key, (64, 64), jnp.float32) for t in (usual, wide)]
    np.testing.assert_array_equal(*tables)
    generator = ElectraConfig(dataclasses.replace(wide, heads=4), generator_size=0.5)
    assert generator.generator_trunk.width_ratio == 4.0


def test_the_plan_gives_kernels_their_share() -> None:
    config = ConfigDict(quickstart.get_config("gpt").to_dict())
    config.model.trunk.base_width = 32
    assert make_plan(config).optimizer.kernel_share == 0.25
    shapes = {
        "embeddings": {"token": {"embedding": jnp.ones((3, 2))}},
        "stack": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
    }
    optimizer = OptimizerConfig(
        learning_rate=1.0, schedule="constant", weight_decay=0.0, clip_norm=0.0,
        bias_correction=True, kernel_share=0.25,
    )  # fmt: skip
    transformation, _ = make_optimizer(optimizer, 1, shapes)
    updates, _ = transformation.update(shapes, transformation.init(shapes), shapes)
    np.testing.assert_allclose(updates["stack"]["kernel"], -0.25, rtol=1e-4)
    np.testing.assert_allclose(updates["stack"]["bias"], -1.0, rtol=1e-4)
    np.testing.assert_allclose(updates["embeddings"]["token"]["embedding"], -1.0, rtol=1e-4)
    config.optimizer.name = "lamb"
    with pytest.raises(ConfigError, match=r"config\.optimizer\.name: 'lamb' takes steps relative"):
        make_plan(config)
