"""Layers against numpy and the values of the reference."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.nn.layers import (
    ACTIVATIONS,
    LayerNorm,
    contract,
    dense,
    embedding_lookup,
    sample_categorical,
    truncated_normal,
)
from lmjax.nn.transformer import FeedForward
from lmjax.nn.trunk import TransformerConfig

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("x", "tanh", "erf"),
    [
        (-3.0, -0.00363739, -0.00404969),
        (-1.0, -0.15880801, -0.15865525),
        (0.5, 0.34571401, 0.34573123),
        (1.0, 0.84119199, 0.84134475),
        (2.0, 1.95459769, 1.95449974),
        (3.0, 2.99636261, 2.99595031),
    ],
)
def test_both_gelus(x: float, tanh: float, erf: float) -> None:
    np.testing.assert_allclose(ACTIVATIONS["gelu_tanh"](jnp.float32(x)), tanh, atol=2e-7)
    np.testing.assert_allclose(ACTIVATIONS["gelu"](jnp.float32(x)), erf, atol=2e-7)


def test_truncated_normal_has_the_std_of_tensorflows() -> None:
    draw = truncated_normal(0.02)(jax.random.key(0), (400, 400), jnp.float32)
    assert abs(float(draw.std()) / 0.02 - 0.87962566) < 0.01
    assert float(jnp.abs(draw).max()) <= 0.04 + 1e-6


def test_layer_norm() -> None:
    x = RNG.normal(3.0, 2.0, (4, 7)).astype(np.float32)
    scale, bias = RNG.normal(size=(2, 7)).astype(np.float32)
    found = LayerNorm(1e-5).apply({"params": {"scale": scale, "bias": bias}}, x)
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    expected = (x - mean) / np.sqrt(variance + 1e-5) * scale + bias
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_layer_norm_of_a_far_mean_keeps_its_digits() -> None:
    x = jnp.float32(1e4) + jnp.arange(8, dtype=jnp.float32)
    params = {"scale": jnp.ones(8), "bias": jnp.zeros(8)}
    found = LayerNorm(1e-12).apply({"params": params}, x)
    np.testing.assert_allclose(jnp.std(jnp.asarray(found)), 1.0, atol=1e-3)


def test_a_gated_feed_forward_layer_is_that_of_its_definition() -> None:
    """(silu(x W) * (x V)) W2 (Shazeer 2020, eq. 6), with the biases of a dense layer."""
    config = TransformerConfig(
        layers=1, hidden_size=6, heads=2, intermediate_size=10, activation="silu", gated=True
    )
    x = jax.random.normal(jax.random.key(0), (3, 6))
    layer = FeedForward(config)
    params = layer.init(jax.random.key(1), x, None)["params"]
    keys = iter(jax.random.split(jax.random.key(2), 6))
    params = jax.tree.map(lambda leaf: jax.random.normal(next(keys), leaf.shape), params)
    p = jax.tree.map(np.float64, params)
    inner, gate = (x @ p[n]["kernel"] + p[n]["bias"] for n in ("inner", "gate"))
    expected = (inner / (1 + np.exp(-inner)) * gate) @ p["outer"]["kernel"] + p["outer"]["bias"]
    np.testing.assert_allclose(layer.apply({"params": params}, x, None), expected, rtol=1e-4)
    plain = dataclasses.replace(config, gated=False)
    assert config.forward_flops(5, 5) - plain.forward_flops(5, 5) == 5 * 2 * 6 * 10


def test_dense_is_a_product_of_the_last_axis_with_its_gradients() -> None:
    x, w = (jnp.asarray(RNG.normal(size=s), jnp.float32) for s in ((2, 3, 5), (5, 4)))
    g = jnp.asarray(RNG.normal(size=(2, 3, 4)), jnp.float32)
    value, pull = jax.vjp(dense, x, w)
    expected, pull_expected = jax.vjp(lambda x, w: jnp.einsum("abi,io->abo", x, w), x, w)
    np.testing.assert_allclose(value, expected, atol=1e-5)
    for found, wanted in zip(pull(g), pull_expected(g), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


SPECS = [
    *("bqhd,bkhd->bhqk", "bhqk,bkhd->bqhd", "bqhd,phd->bhqp", "bqhd,bphd->bhqp"),
    *("bqhd,shd->sbhq", "bli,io->blo", "ni,io->no"),
]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("odd", [0, 1])
def test_bfloat16_operands_give_float32_results_near_the_exact_ones(spec: str, odd: int) -> None:
    sizes = {"b": 2, "q": 6, "k": 12, "h": 2, "d": 8, "p": 18, "s": 2, "l": 10, "i": 16, "o": 24}
    sizes = {letter: size + odd for letter, size in (sizes | {"n": 20}).items()}
    left, right = spec.split("->")[0].split(",")
    a, b = (jnp.asarray(RNG.normal(size=[sizes[i] for i in s]), jnp.float32) for s in (left, right))

    def loss(a: jax.Array, b: jax.Array, g: jax.Array, dtype: Any) -> jax.Array:
        # Inside of a program: what stands around a product decides what becomes of it.
        y = contract(spec, jnp.tanh(a), jnp.tanh(b), dtype)
        assert y.dtype == jnp.float32
        return (jnp.tanh(y / 4) * g).sum()

    g = jnp.asarray(RNG.normal(size=contract(spec, a, b).shape), jnp.float32)
    gradient = jax.jit(jax.value_and_grad(loss, (0, 1)), static_argnums=3)
    exact, rough = gradient(a, b, g, jnp.float32), gradient(a, b, g, jnp.bfloat16)
    np.testing.assert_allclose(rough[0], exact[0], atol=0.02 * float(jnp.abs(g).sum()))
    for found, wanted in zip(rough[1], exact[1], strict=True):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, wanted, atol=0.02 * float(jnp.abs(wanted).max()) + 0.02)


def test_an_id_outside_of_the_table_is_not_a_number() -> None:
    table = jnp.ones((3, 2))
    assert np.isnan(embedding_lookup(table, jnp.array([3]))).all()
    np.testing.assert_array_equal(embedding_lookup(table, jnp.array([[2]])), [[[1.0, 1.0]]])


@pytest.mark.parametrize("classes", [1, 3, 256, 257, 1000])
def test_samples_invert_the_cumulative_distribution(classes: int) -> None:
    key, rng = jax.random.key(classes), np.random.default_rng(classes)
    logits = rng.normal(0, 3, (50, 2, classes))
    logits[:, :, rng.random(classes) < 0.3] = -np.inf
    logits[:, :, -1] = 0.0
    found = np.asarray(sample_categorical(key, jnp.asarray(logits, jnp.float32)))
    uniform = np.asarray(jax.random.uniform(key, (50, 2)), np.float64)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    ends = np.cumsum(p / p.sum(-1, keepdims=True), -1)
    expected = (ends <= uniform[..., None]).sum(-1)
    # Rounding moves a number that lies next to the border of two classes.
    near = np.abs(ends - uniform[..., None]).min(-1) < 1e-6
    assert ((found == expected) | near).all() and near.mean() < 0.05
    assert np.isfinite(np.take_along_axis(logits, found[..., None], -1)).all()
    assert found.dtype == np.int32


def test_samples_have_the_probabilities_of_softmax() -> None:
    logits = jnp.log(jnp.array([0.5, 0.0, 0.2, 0.3]))
    keys = jax.random.split(jax.random.key(0), 40_000)
    samples = jax.vmap(sample_categorical, (0, None))(keys, logits)
    counts = np.bincount(np.asarray(samples), minlength=4) / len(keys)
    np.testing.assert_allclose(counts, [0.5, 0.0, 0.2, 0.3], atol=0.01)
