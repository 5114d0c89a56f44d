"""Rotary positions, grouped queries, windows and RMSNorm, for every network that reads them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.errors import ConfigError
from lmjax.models.bert import BertConfig
from lmjax.models.electra import ElectraConfig
from lmjax.models.gpt import GptConfig
from lmjax.models.xlnet import XlnetConfig
from lmjax.nn.attention import attention, cached_attention
from lmjax.nn.layers import RMSNorm
from lmjax.nn.masks import causal, within
from lmjax.nn.positions import rotary_frequencies, rotate
from lmjax.nn.transformer import Stack, TextEmbeddings
from lmjax.nn.trunk import RotaryConfig, TransformerConfig

LENGTH = 12
MODERN: dict[str, Any] = {
    "positions": "rotary",
    "key_value_heads": 2,
    "query_key_norm": True,
    "gated": True,
    "activation": "silu",
    "norm": "pre",
    "normalization": "rms_norm",
    "biases": "none",
    "layer_norm_epsilon": 1e-6,
}
X = jax.random.normal(jax.random.key(0), (2, LENGTH, 16))
PLACES = jnp.broadcast_to(jnp.arange(LENGTH), (2, LENGTH))
EVERYTHING = jnp.ones((1, 1, LENGTH), bool)


def trunk(**settings: Any) -> TransformerConfig:
    sizes = {"layers": 2, "hidden_size": 16, "heads": 4, "intermediate_size": 24}
    return TransformerConfig(**sizes | {"initial_std": 0.3} | settings)


def hidden(
    config: TransformerConfig, params: Any, x: jax.Array, places: Any, mask: Any
) -> jax.Array:
    return jax.jit(lambda x: Stack(config).apply({"params": params}, x, places, mask, None)[0])(x)


def params_of(config: TransformerConfig) -> Any:
    return Stack(config).init(jax.random.key(1), X, PLACES, EVERYTHING, None)["params"]


def test_rms_norm() -> None:
    scale = jnp.linspace(0.5, 1.5, 16)
    found = RMSNorm(1e-3).apply({"params": {"scale": scale}}, X)
    x = np.asarray(X, np.float64)
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-3) * np.asarray(scale)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_scores_depend_on_distances_alone() -> None:
    config = trunk(**MODERN)
    params = params_of(config)
    here, there = (hidden(config, params, X, PLACES + by, EVERYTHING) for by in (0, 7))
    np.testing.assert_allclose(here, there, atol=2e-5)
    apart = hidden(config, params, X, 2 * PLACES, EVERYTHING)
    assert np.abs(here - apart).max() > 1e-2


@pytest.mark.parametrize("scan_layers", [False, True])
def test_layers_that_do_not_rotate_read_no_positions(scan_layers: bool) -> None:
    rotated = trunk(**MODERN, scan_layers=scan_layers)
    params = params_of(rotated)
    none, second = (dataclasses.replace(rotated, unrotated_every=n) for n in (1, 2))
    here, there = (hidden(none, params, X, places, EVERYTHING) for places in (PLACES, 2 * PLACES))
    np.testing.assert_array_equal(here, there)
    whole, half = (hidden(c, params, X, PLACES, EVERYTHING) for c in (rotated, second))
    gaps = [np.abs(x - y).max() for x, y in ((here, half), (half, whole), (here, whole))]
    assert min(gaps) > 1e-2
    for fields in ({"positions": "learned"}, {"rotary": RotaryConfig(100.0, 0.0, "yarn", 2.0, 8)}):
        with pytest.raises(ConfigError, match="unrotated_every: only layers of positions='rotary'"):
            dataclasses.replace(second, **fields)


def test_rotation_is_that_of_complex_numbers() -> None:
    frequencies, _ = rotary_frequencies(RotaryConfig(base=100.0), 100.0, 4)
    np.testing.assert_allclose(frequencies, [1.0, 0.1])
    x = np.asarray(X).reshape(2, LENGTH, 4, 4)
    angles = PLACES[..., None] * frequencies
    turned = (x[..., :2] + 1j * x[..., 2:]) * np.exp(1j * np.asarray(angles))[:, :, None]
    expected = np.concatenate([turned.real, turned.imag], -1)
    np.testing.assert_allclose(rotate(jnp.asarray(x), angles), expected, atol=1e-5)


@pytest.mark.parametrize("extension", ["", "linear", "yarn", "llama3"])
@pytest.mark.parametrize(("head_dim", "base"), [(64, 10_000.0), (128, 500_000.0), (8, 10_000.0)])
def test_frequencies_of_published_extensions(extension: Any, head_dim: int, base: float) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    own = {"factor": 8.0, "original_max_position_embeddings": 4096}
    own |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if extension == "llama3" else {}
    parameters = {"rope_type": extension or "default", "rope_theta": base, **own}
    config = transformers.LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        head_dim=head_dim,
        max_position_embeddings=32_768,
        rope_parameters=parameters if extension else {"rope_type": "default", "rope_theta": base},
    )
    rotary = RotaryConfig(
        base=base, extension=extension, factor=8.0 if extension else 1.0, original_length=4096
    )
    found, scale = rotary_frequencies(rotary, base, head_dim)
    if not extension:
        np.testing.assert_allclose(
            found, base ** (-np.arange(0, head_dim, 2) / head_dim), rtol=1e-6
        )
        return
    expected, their_scale = ROPE_INIT_FUNCTIONS[extension](config, "cpu")
    np.testing.assert_allclose(found, expected.numpy(), rtol=2e-6)
    assert scale == pytest.approx(their_scale)


def test_grouped_queries_are_shared_keys_and_values() -> None:
    grouped = trunk(**MODERN | {"query_key_norm": False})
    params = params_of(grouped)
    full = dataclasses.replace(grouped, key_value_heads=0)

    def shared(path: Any, leaf: jax.Array) -> jax.Array:
        if not any(getattr(key, "key", "") in ("key", "value") for key in path):
            return leaf
        by_head = leaf.reshape(16, 2, 4)  # each for two query heads
        return jnp.repeat(by_head, 2, axis=1).reshape(16, 16)

    repeated = jax.tree_util.tree_map_with_path(shared, params)
    mask = causal(LENGTH)
    np.testing.assert_allclose(
        hidden(grouped, params, X, PLACES, mask), hidden(full, repeated, X, PLACES, mask), atol=1e-5
    )


def test_a_cache_of_few_heads_is_read_by_all() -> None:
    keys = jax.random.split(jax.random.key(2), 3)
    query = jax.random.normal(keys[0], (2, 3, 6, 4))
    key, value = (jax.random.normal(k, (2, 5, 2, 4)) for k in keys[1:])
    mask = jax.random.bernoulli(keys[0], 0.7, (2, 3, 5))
    found = cached_attention(query, key, value, mask, jnp.dtype("float32"))
    repeated = [jnp.repeat(x, 3, axis=2) for x in (key, value)]
    np.testing.assert_allclose(found, attention(query, *repeated, mask), atol=1e-6)


@pytest.mark.parametrize(
    ("scanned", "mask"),
    [
        pytest.param(False, "causal", marks=pytest.mark.slow),
        (False, "both sides"),
        (True, "causal"),
    ],
)
def test_who_sees_whom(scanned: bool, mask: str) -> None:
    """By perturbing each token: a local layer reaches 2 positions, and a global one all."""
    allowed = causal(LENGTH) if mask == "causal" else EVERYTHING
    distance = np.arange(LENGTH)[:, None] - np.arange(LENGTH)
    earlier = distance >= 0 if mask == "causal" else np.ones_like(distance, bool)

    def sees(**settings: Any) -> np.ndarray:
        config = trunk(**MODERN | {"scan_layers": scanned, **settings})
        params = params_of(config)
        moved = X[:1] + 3 * jnp.eye(LENGTH)[:, :, None]
        before = hidden(config, params, X[:1], PLACES[:1], allowed)
        after = hidden(config, params, moved, PLACES[:1], allowed)
        return np.asarray(jnp.abs(after - before).max(-1)).T > 1e-4  # [query, key]

    near = (np.abs(distance) <= 2) & earlier
    assert np.array_equal(sees(layers=1, window=2), near)
    twice = (np.abs(distance) <= 4) & earlier
    assert np.array_equal(sees(layers=2, window=2), twice)
    assert np.array_equal(sees(layers=1, window=2, global_every=2), earlier)
    assert np.array_equal(sees(layers=2, window=2, global_every=3), earlier)
    assert np.array_equal(sees(layers=2), earlier)


def test_local_layers_have_their_own_wavelengths() -> None:
    config = trunk(**MODERN | {"window": 3, "global_every": 2})
    params = params_of(config)
    own = dataclasses.replace(config, rotary=RotaryConfig(local_base=50.0))
    every = dataclasses.replace(config, rotary=RotaryConfig(base=50.0))
    found = [hidden(c, params, X, PLACES, EVERYTHING) for c in (config, own, every)]
    assert np.abs(found[0] - found[1]).max() > 1e-3
    assert np.abs(found[1] - found[2]).max() > 1e-3
    # In one local layer it is the only one that matters.
    one = dataclasses.replace(own, layers=1, global_every=0)
    same = dataclasses.replace(every, layers=1, global_every=0)
    params = params_of(one)
    np.testing.assert_allclose(
        *(hidden(c, params, X, PLACES, EVERYTHING) for c in (one, same)), atol=1e-6
    )


@pytest.mark.parametrize(
    "change", [{"scan_layers": True}, {"query_chunk": 5}, {"remat": "nothing_saveable"}]
)
def test_other_ways_to_compute_are_the_same(change: dict[str, Any]) -> None:
    config = trunk(
        **MODERN | {"window": 3, "global_every": 2, "rotary": RotaryConfig(local_base=9.0)}
    )
    params = params_of(config)
    changed = dataclasses.replace(config, **change)
    own = params
    if changed.scan_layers:
        layers = [params["blocks"][f"layer_{i}"] for i in range(2)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
        own = {**params, "blocks": {"layers": stacked}}

    def loss(config: TransformerConfig, params: Any, x: jax.Array) -> jax.Array:
        return jnp.square(
            Stack(config).apply({"params": params}, x, PLACES, causal(LENGTH), None)[0]
        ).sum()

    expected = jax.jit(jax.value_and_grad(lambda x: loss(config, params, x)))(X)
    found = jax.jit(jax.value_and_grad(lambda x: loss(changed, own, x)))(X)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-3, atol=1e-4)


def test_sinusoids_are_added_to_the_embeddings() -> None:
    embeddings = TextEmbeddings(trunk(positions="sinusoidal", dropout=0.0), 20, 16, 64, 0, False)
    tokens = jnp.arange(LENGTH)[None] % 20
    params = embeddings.init(jax.random.key(0), tokens, tokens, tokens, None)
    assert set(params["params"]) == {"token"}
    found = embeddings.apply(params, tokens, tokens, PLACES[:1], None)[0]
    rates = 10_000.0 ** (-np.arange(0, 16, 2) / 16)
    angles = np.arange(LENGTH)[:, None] * rates
    expected = np.concatenate([np.sin(angles), np.cos(angles)], -1)
    np.testing.assert_allclose(
        found - params["params"]["token"]["embedding"][tokens[0]], expected, atol=1e-5
    )


def test_masks_of_windows() -> None:
    mask = within(2, jnp.arange(3, 6)[None], jnp.arange(8)[None]).dense()[0]
    assert [np.flatnonzero(row).tolist() for row in mask] == [
        [1, 2, 3, 4, 5],
        [2, 3, 4, 5, 6],
        [3, 4, 5, 6, 7],
    ]


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="key_value_heads: 3 does not divide heads=4"):
        trunk(key_value_heads=3)
    with pytest.raises(ConfigError, match="positions: rotary positions rotate pairs of features"):
        trunk(positions="rotary", head_dim=3)
    with pytest.raises(ConfigError, match="original_length: extension='yarn' depends on"):
        RotaryConfig(extension="yarn", factor=2.0)
    for name, value in (("positions", "rotary"), ("key_value_heads", 2), ("window", 4)):
        with pytest.raises(
            ConfigError, match=rf"trunk\.{name}: XLNet keeps its relative positions"
        ):
            XlnetConfig(trunk(**{name: value}), vocab_size=20)
    for cls in (BertConfig, ElectraConfig):
        with pytest.raises(ConfigError, match=r"trunk\.positions: transformers supports only"):
            cls(trunk(positions="rotary"), vocab_size=20).published_values()
    with pytest.raises(ConfigError, match=r"trunk\.normalization: transformers supports only"):
        GptConfig(trunk(norm="pre", normalization="rms_norm"), vocab_size=20).published_values()
