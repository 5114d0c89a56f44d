"""Attention, masks and positions against plain loops."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmjax.errors import ConfigError
from lmjax.nn import masks
from lmjax.nn.attention import attention
from lmjax.nn.dropout import Seeds
from lmjax.nn.positions import relative_distances, relative_shift, relative_shift_at, sinusoid
from lmjax.nn.relative import RelativeAttention, RelativeContext
from lmjax.nn.transformer import Stack
from lmjax.nn.trunk import TransformerConfig

RNG = np.random.default_rng(0)
CONFIG = TransformerConfig(layers=2, hidden_size=8, heads=2, intermediate_size=16, initial_std=0.5)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def test_attention_by_a_loop() -> None:
    q, k, v = (RNG.normal(size=(2, n, 2, 4)).astype(np.float32) for n in (3, 5, 5))
    mask = RNG.random((2, 3, 5)) < 0.6
    mask[..., 0] = True
    found = attention(*map(jnp.asarray, (q, k, v)), jnp.asarray(mask))
    for b, i, h in np.ndindex(2, 3, 2):
        scores = np.array([q[b, i, h] @ k[b, j, h] / 2.0 for j in range(5)])
        scores[~mask[b, i]] = -np.inf
        np.testing.assert_allclose(found[b, i, h], softmax(scores) @ v[b, :, h], atol=1e-5)


def test_a_row_that_sees_nothing_is_finite() -> None:
    x = jnp.ones((1, 3, 1, 2))
    mask = jnp.zeros((1, 3, 3), bool)
    assert np.isfinite(attention(x, x, x, mask)).all()
    gradient = jax.grad(lambda x: attention(x, x, x, mask).sum())(x)
    assert np.isfinite(gradient).all()


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8))
def test_same_document_by_a_loop(row: list[int]) -> None:
    documents = jnp.asarray([row])
    found = np.asarray(masks.same_document(documents).dense())[0]
    for i, mine in enumerate(row):
        for j, other in enumerate(row):
            assert found[i, j] == (mine == other and other > 0)


def test_masks_combine() -> None:
    causal = np.asarray(masks.causal(4).dense())[0]
    assert causal.tolist() == np.tril(np.ones((4, 4), bool)).tolist()
    seen = masks.prefix(jnp.array([[True, True, False, False]])) | masks.causal(4)
    assert np.asarray(seen.dense())[0].tolist() == (causal | [True, True, False, False]).tolist()
    none = masks.as_mask(jnp.zeros((1, 3, 3), bool))
    content = masks.content(none, 3, 3)
    assert np.asarray(content.dense())[0].tolist() == np.eye(3, dtype=bool).tolist()
    longer = masks.with_memory(content, 2).dense()
    assert longer.shape == (1, 3, 5)
    assert np.asarray(longer)[..., :2].all()
    with_array = jnp.asarray(causal)[None] & masks.padding(jnp.array([[1, 1, 0, 2]]))
    assert (
        np.asarray(with_array.dense())[0].tolist() == (causal & [True, True, False, True]).tolist()
    )


MASKS = {
    "documents": masks.same_document(jnp.array([[1, 1, 2, 2, 2, 0], [1, 2, 2, 3, 0, 0]])),
    "causal": masks.causal(6) & masks.padding(jnp.array([[1, 1, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0]])),
    "array": masks.as_mask(jnp.asarray(RNG.random((2, 6, 6)) < 0.5)),
    "order": masks.content(
        masks.permutation(
            jnp.asarray(RNG.integers(0, 6, (2, 6))), jnp.asarray(RNG.integers(-1, 6, (2, 6)))
        ),
        6,
        6,
    ),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("memory", [0, 3])
def test_masks_by_rows_and_at_positions(name: str, memory: int) -> None:
    mask = masks.with_memory(MASKS[name], memory)
    whole = np.broadcast_to(mask.dense(), (2, 6, memory + 6))
    np.testing.assert_array_equal(
        np.broadcast_to(mask.rows(2, 3), (2, 3, memory + 6)), whole[:, 2:5]
    )
    assert np.shape(mask.rows(4, 4))[1] == 4, "a last chunk may reach beyond the end"
    positions = np.array([[5, 0, 3, 3], [1, 1, 4, 2]])
    taken = np.broadcast_to(mask.take(jnp.asarray(positions)).dense(), (2, 4, memory + 6))
    np.testing.assert_array_equal(taken, whole[np.arange(2)[:, None], positions])


@pytest.mark.parametrize(("queries", "keys"), [(3, 3), (3, 5), (4, 9), (1, 4)])
def test_relative_shift_aligns_distances_with_keys(queries: int, keys: int) -> None:
    columns = jnp.arange(keys + queries)
    scores = jnp.broadcast_to(columns, (1, 1, queries, keys + queries))
    found = np.asarray(relative_shift(scores, keys))[0, 0]
    i, j = np.mgrid[:queries, :keys]
    np.testing.assert_array_equal(found, queries - i + j)
    distances = np.asarray(relative_distances(queries, keys))
    np.testing.assert_array_equal(distances[found], (keys - queries) + i - j)


def test_relative_shift_at_takes_the_rows_of_relative_shift() -> None:
    queries, keys = 4, 6
    scores = jnp.asarray(RNG.normal(size=(2, 3, queries, keys + queries)), jnp.float32)
    whole = np.asarray(relative_shift(scores, keys))
    at = np.array([[3, 0], [1, 1]])
    rows = jnp.take_along_axis(scores, jnp.asarray(at)[:, None, :, None], axis=2)
    found = np.asarray(relative_shift_at(rows, jnp.asarray(at), queries))
    for b in range(2):
        np.testing.assert_array_equal(found[b], whole[b][:, at[b]])


def test_sinusoids_and_clamping() -> None:
    found = np.asarray(sinusoid(jnp.array([0, 3]), 4))
    np.testing.assert_allclose(found[0], [0, 0, 1, 1], atol=1e-7)
    expected = [np.sin(3), np.sin(0.03), np.cos(3), np.cos(0.03)]
    np.testing.assert_allclose(found[1], expected, atol=1e-6)
    assert relative_distances(2, 3, clamp_length=1).tolist() == [1, 1, 1, 0, -1]


def test_relative_attention_by_a_loop() -> None:
    """(q+u)k + (q+v) W R + (q+w) s, Yang et al. 2019 with the authors' App. A.1."""
    length, memory = 3, 2
    keys = memory + length
    attend = RelativeAttention(CONFIG)
    context = RelativeContext(
        encoding=jnp.stack(
            [sinusoid(d, 8) for d in (relative_distances(3, keys), -relative_distances(3, keys))]
        ),
        direction=jnp.array([0, 1]),
        content_mask=masks.as_mask(
            jnp.asarray(RNG.random((2, length, keys)) < 0.7).at[..., 0].set(True)
        ),
        content_same_segment=masks.as_mask(jnp.asarray(RNG.random((2, length, keys)) < 0.5)),
    )
    h = jnp.asarray(RNG.normal(size=(2, keys, 8)), jnp.float32)

    def run(module: RelativeAttention) -> jax.Array:
        return module.attend(
            h[:, memory:],
            module.keys_values(h[:, memory:]),
            module.keys_values(h[:, :memory]),
            module.positions(context),
            context.direction,
            context.content_mask,
            context.content_same_segment,
            None,
            None,
        )

    found, variables = nn.init_with_output(run, attend)(jax.random.key(0))
    p: Any = jax.tree.map(np.asarray, variables["params"])

    def heads(name: str, x: np.ndarray) -> np.ndarray:
        return (x @ p[name]["kernel"]).reshape(*x.shape[:-1], 2, 4)

    x = np.asarray(h)
    visible, same = (
        np.asarray(m.dense()) for m in (context.content_mask, context.content_same_segment)
    )
    for b in range(2):
        sign = 1 if b == 0 else -1
        q, k, v = heads("query", x[b, memory:]), heads("key", x[b]), heads("value", x[b])
        out = np.zeros((length, 2, 4))
        for i, a in np.ndindex(length, 2):
            scores = np.full(keys, -np.inf)
            for j in range(keys):
                if not visible[b, i, j]:
                    continue
                distance = sign * (memory + i - j)
                r = heads("relative", np.asarray(sinusoid(jnp.array([distance]), 8)))[0, a]
                s = p["segment_embedding"][int(not same[b, i, j]), a]
                scores[j] = (
                    (q[i, a] + p["content_bias"][a]) @ k[j, a]
                    + (q[i, a] + p["position_bias"][a]) @ r
                    + (q[i, a] + p["segment_bias"][a]) @ s
                ) / 2.0
            out[i, a] = softmax(scores) @ v[:, a]
        expected = out.reshape(length, 8) @ p["output"]["kernel"]
        np.testing.assert_allclose(found[b], expected, atol=1e-4)


SEEDS = Seeds.of(jax.random.split(jax.random.key(1), 2), jax.random.key(2))
X = jnp.asarray(RNG.normal(size=(2, 5, 8)), jnp.float32)
MASK = masks.causal(5)
PLACES = jnp.broadcast_to(jnp.arange(5), (2, 5))


def value_and_gradient(config: TransformerConfig, params: Any) -> Any:
    def loss(params: Any) -> jax.Array:
        hidden, _ = Stack(config).apply({"params": params}, X, PLACES, MASK, SEEDS)
        return jnp.square(hidden).mean()

    return jax.jit(jax.value_and_grad(loss))(params)


def test_scan_and_remat_change_nothing() -> None:
    config = dataclasses.replace(CONFIG, norm="pre")
    params = Stack(config).init(jax.random.key(0), X, PLACES, MASK, None)["params"]
    value, gradient = value_and_gradient(config, params)

    for policy in ("nothing_saveable", "dots_with_no_batch_dims_saveable"):
        remat = dataclasses.replace(config, remat=policy)
        again, gradient_again = value_and_gradient(remat, params)
        np.testing.assert_allclose(again, value, rtol=1e-6)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient_again, gradient
        )

    blocks = params["blocks"]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks.values())
    scan = dataclasses.replace(config, scan_layers=True, remat="nothing_saveable")
    scanned, gradient_scanned = value_and_gradient(scan, {**params, "blocks": {"layers": stacked}})
    np.testing.assert_allclose(scanned, value, rtol=1e-6)
    for i in range(2):
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, atol=1e-5),
            gradient_scanned["blocks"]["layers"],
            gradient["blocks"][f"layer_{i}"],
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 3}, "heads: 3 does not divide hidden_size=8"),
        ({"layers": 0}, "layers: must be at least 1"),
        ({"dropout": 1.0}, "dropout: must lie in"),
        ({"head_dim": -1}, "head_dim: "),
        ({"query_chunk": -1}, "query_chunk: "),
    ],
)
def test_trunks_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(CONFIG, **change)
