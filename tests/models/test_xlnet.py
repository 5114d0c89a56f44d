"""XLNet by enumeration: all orders of a short sequence, and memory against a longer pass."""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.models.xlnet import Xlnet, XlnetConfig
from tests import tiny

TRUNK = dataclasses.replace(tiny.TRUNK, layers=2, initial_std=0.3)


def model(vocab_size: int, memory_length: int = 0) -> Xlnet:
    return Xlnet(XlnetConfig(TRUNK, memory_length=memory_length, vocab_size=vocab_size))


@functools.cache
def variables(vocab_size: int) -> Any:
    ids = jnp.zeros((1, 4), jnp.int32)
    inputs = tiny.text_inputs(ids, jnp.ones((1, 4, 4), bool))
    return jax.jit(model(vocab_size).init)(jax.random.key(0), inputs, None, ids)


def order_mask(order: tuple[int, ...]) -> np.ndarray:
    """[i, j]: i may see j, which comes earlier in the order."""
    place = np.argsort(order)
    return place[None, :] < place[:, None]


def test_every_order_of_four_tokens() -> None:
    size, length = 11, 4
    orders = list(itertools.permutations(range(length)))
    assert len(orders) == 24
    masks = jnp.asarray(np.stack([order_mask(order) for order in orders]))
    network, weights = model(size), variables(size)
    every = jnp.arange(length)[None]

    @jax.jit
    def streams(tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Query and content stream, [orders, position, hidden]."""
        rows = jnp.broadcast_to(tokens, (24, length))
        targets = jnp.broadcast_to(every, (24, length))
        g, _ = network.apply(weights, tiny.text_inputs(rows, masks), None, targets)
        h, _ = network.apply(weights, tiny.text_inputs(rows, masks))
        return jnp.asarray(g), jnp.asarray(h)

    tokens = jnp.array([3, 5, 2, 8])
    g, h = map(np.asarray, streams(tokens))
    for j in range(length):
        changed_g, changed_h = map(np.asarray, streams(tokens.at[j].set(9)))
        for n, mask in enumerate(np.asarray(masks)):
            saw_g = (changed_g[n] != g[n]).any(-1)
            saw_h = (changed_h[n] != h[n]).any(-1)
            np.testing.assert_array_equal(saw_g, mask[:, j])
            np.testing.assert_array_equal(saw_h, mask[:, j] | (np.arange(length) == j))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_an_order_gives_a_distribution_over_all_sequences(order: tuple[int, ...]) -> None:
    size, length = 3, 3
    network, weights = model(size), variables(size)
    sequences = jnp.asarray(list(itertools.product(range(size), repeat=length)))
    n = len(sequences)
    mask = jnp.broadcast_to(order_mask(order), (n, length, length))
    targets = jnp.broadcast_to(jnp.arange(length), (n, length))

    @jax.jit
    def log_p(sequences: jax.Array) -> jax.Array:
        g, _ = network.apply(weights, tiny.text_inputs(sequences, mask), None, targets)
        scores = jax.nn.log_softmax(network.apply(weights, g, method="decode"))
        return jnp.take_along_axis(scores, sequences[..., None], axis=-1).sum((1, 2))

    np.testing.assert_allclose(np.exp(log_p(sequences)).sum(), 1.0, atol=1e-5)


def test_memory_equals_one_longer_pass() -> None:
    size, half = 11, 4
    rng = np.random.default_rng(1)
    tokens = jnp.asarray(rng.integers(0, size, (2, 2 * half)))
    # Memory counts as type 0 (the authors' code), so the first half is of type 0 here.
    types = jnp.asarray(np.tile([0, 0, 0, 0, 0, 0, 1, 1], (2, 1)))
    within = jnp.asarray(rng.random((2, half, half)) < 0.5)
    whole = jnp.zeros((2, 2 * half, 2 * half), bool)
    whole = whole.at[:, :half, :half].set(True).at[:, half:, :half].set(True)
    whole = whole.at[:, half:, half:].set(within)
    targets = jnp.array([[1, 3], [0, 2]])
    weights = variables(size)
    network = model(size, memory_length=half)

    both = tiny.text_inputs(tokens, whole, types)
    long_g, _ = model(size).apply(weights, both, None, half + targets)
    long_h, _ = model(size).apply(weights, both)
    full = jnp.ones((2, half, half), bool)
    first, mems = network.apply(weights, tiny.text_inputs(tokens[:, :half], full, types[:, :half]))
    second = (tiny.text_inputs(tokens[:, half:], within, types[:, half:]), mems)
    short_g, _ = network.apply(weights, *second, targets)
    short_h, new_mems = network.apply(weights, *second)
    np.testing.assert_allclose(first, jnp.asarray(long_h)[:, :half], atol=1e-5)
    np.testing.assert_allclose(short_h, jnp.asarray(long_h)[:, half:], atol=1e-5)
    np.testing.assert_allclose(short_g, long_g, atol=1e-5)
    assert jnp.asarray(new_mems).shape == (2, 2, half, 16)


def test_what_memory_keeps() -> None:
    size = 11
    tokens = jnp.asarray(np.random.default_rng(2).integers(0, size, (1, 6)))
    inputs = tiny.text_inputs(tokens, jnp.ones((1, 6, 6), bool))
    weights = variables(size)

    def mems(memory_length: int, reuse_length: int = 0, old: Any = None) -> np.ndarray:
        network = model(size, memory_length)
        _, kept = network.apply(weights, inputs, old, reuse_length=reuse_length)
        return np.asarray(kept)

    whole = mems(6)
    embedded = weights["params"]["encoder"]["token"]["embedding"][tokens]
    np.testing.assert_allclose(whole[0], embedded, atol=1e-6)  # inputs of the first layer
    np.testing.assert_allclose(mems(2), whole[:, :, -2:], atol=1e-6)
    np.testing.assert_allclose(mems(6, reuse_length=3), whole[:, :, :3], atol=1e-6)
    old = jnp.ones((2, 1, 4, 16))
    joined = mems(5, reuse_length=3, old=old)
    assert joined.shape == (2, 1, 5, 16)
    np.testing.assert_array_equal(joined[:, :, :2], 1.0)
    assert model(size).empty_mems(3) is None
    assert not np.asarray(model(size, 4).empty_mems(3)).any()


def test_no_gradient_flows_into_memory() -> None:
    size = 11
    tokens = jnp.ones((1, 4), jnp.int32)
    inputs = tiny.text_inputs(tokens, jnp.ones((1, 4, 4), bool))
    network = model(size, 4)

    def through(weights: Any) -> jax.Array:
        _, mems = network.apply(weights, inputs)
        return jnp.sum(jnp.asarray(mems))

    gradient = jax.grad(through)(variables(size))
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient))


def test_text_read_backward_is_the_same_text() -> None:
    """Reversed tokens with direction -1 give the reversed states (bidirectional data)."""
    size = 11
    tokens = jnp.asarray(np.random.default_rng(3).integers(0, size, (1, 5)))
    mask = jnp.ones((1, 5, 5), bool)
    read, reversed_ = (tiny.text_inputs(t, mask) for t in (tokens, tokens[:, ::-1]))
    weights, network = variables(size), model(size)
    forward, _ = network.apply(weights, read)
    backward, _ = network.apply(weights, reversed_, direction=jnp.array([-1]))
    plain, _ = network.apply(weights, reversed_, direction=jnp.array([1]))
    np.testing.assert_allclose(jnp.asarray(backward)[:, ::-1], forward, atol=1e-5)
    assert not np.allclose(jnp.asarray(plain)[:, ::-1], forward, atol=1e-3)
