"""Scaled dot-product and multi-head self-attention (Vaswani et al. 2017 §3.2)."""

from collections.abc import Callable
from typing import Any, Self, TypeAlias

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from lmjax.nn import kernels
from lmjax.nn.dropout import Seeds, Window, dropout
from lmjax.nn.layers import Dense, LayerNorm, RMSNorm, contract
from lmjax.nn.masks import Mask, as_mask
from lmjax.nn.partition import over_queries, pad_length
from lmjax.nn.positions import rotary_frequencies, rotate
from lmjax.nn.taps import tap, weights_tap
from lmjax.nn.trunk import Kernel, RotaryConfig, TransformerConfig

# Finite: with -inf, a fully masked row would give NaN.
MASKED_SCORE = -1e30

PROBABILITIES, OUTPUT = 1, 2  # dropout sites

_PROJECTED = ("queries", "keys", "values")  # taps


def attention_weights(
    scores: jax.Array,
    mask: jax.Array,
    rate: float,
    seeds: Seeds | None,
    window: Window | None = None,
) -> jax.Array:
    """Masked softmax of `scores`, followed by dropout; float32.

    Args:
      scores: [batch, heads, queries, keys].
      mask: boolean, broadcasts to [batch, queries, keys]; True = may attend.
      window: which part of the full weights these are, so that chunks get the same dropout mask.
    """
    weights = masked_softmax(scores, mask[:, None])
    return dropout(weights, rate, seeds, PROBABILITIES, window)


@jax.custom_jvp
def masked_softmax(scores: jax.Array, mask: jax.Array) -> jax.Array:
    """Softmax of `scores` over the last axis where `mask` is True, zeros elsewhere; float32.

    Fully masked queries return zeros, such as the first query of a factorization order without
    memory. The backward pass needs only the result, so no other array of this size is saved.
    """
    scores = jnp.where(mask, scores.astype(jnp.float32), MASKED_SCORE)
    return jnp.where(mask, jax.nn.softmax(scores, axis=-1), 0.0)


@masked_softmax.defjvp
def _softmax_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    weights = masked_softmax(*primals)
    change = weights * tangents[0].astype(jnp.float32)
    return weights, change - weights * change.sum(-1, keepdims=True)


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Mask | jax.Array,
    *,
    rate: float = 0.0,
    seeds: Seeds | None = None,
    dtype: jnp.dtype = jnp.float32,
    kernel: Kernel = "auto",
    chunk: int = 0,
    tap: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """softmax(query key^T / sqrt(head_dim)) value.

    Args:
      query: [batch, queries, heads, head_dim].
      key: [batch, keys, heads, head_dim]; value likewise.
      mask: True = may attend, broadcasts to [batch, queries, keys].
      rate: dropout rate of the weights, independent for each example and head.
      dtype: dtype of the matrix product operands.
      kernel: attention implementation; see `lmjax.nn.kernels`.
      chunk: number of queries whose scores are in memory at once, if no kernel is used; 0 = all.
      tap: reads or edits the weights, [batch, heads, queries, keys]; then neither kernels nor
        chunks are used.

    Returns:
      [batch, queries, heads, head_dim] float32.
    """
    mask = as_mask(mask)
    if tap is not None:
        scores = contract("bqhd,bkhd->bhqk", query * query.shape[-1] ** -0.5, key, dtype)
        weights = tap(attention_weights(scores, mask.dense(), rate, seeds))
        return contract("bhqk,bkhd->bqhd", weights, value, dtype)
    drops = rate > 0 and seeds is not None
    chosen = kernels.choose(kernel, query, key, mask, dtype, drops)
    if chosen != "plain":
        return kernels.KERNELS[chosen](query, key, value, mask, dtype)

    def rows(first: Any, query: jax.Array, keys_values: Any, shared: Any) -> jax.Array:
        (key, value), (mask, seeds) = keys_values, shared

        def block(start: Any, query: jax.Array) -> jax.Array:
            count = query.shape[1]
            scores = contract("bqhd,bkhd->bhqk", query * query.shape[-1] ** -0.5, key, dtype)
            window = Window(2, start)
            weights = attention_weights(scores, mask.rows(start, count), rate, seeds, window)
            return contract("bhqk,bkhd->bqhd", weights, value, dtype)

        return by_chunks(block, first, query, chunk)

    return over_queries(rows, query, (key, value), (mask, seeds))


def by_chunks(
    f: Callable[[Any, Any], jax.Array], first: jax.Array | int, queries: Any, chunk: int
) -> jax.Array:
    """Applies `f` to one chunk of queries after another, recomputed in the backward pass.

    Intermediate arrays of a chunk are freed before the next chunk runs, so memory grows with
    queries + keys instead of their product (Rabe & Staats 2021).

    Args:
      f: called as f(position of the first query, queries) -> [batch, chunk, ...].
      first: position of the first of `queries`.
      queries: pytree of arrays [batch, length, ...].
      chunk: queries per chunk. With 0, or with at least `length`, `f` is called once on all
        queries and nothing is recomputed.

    Returns:
      [batch, length, ...].
    """
    length = jax.tree.leaves(queries)[0].shape[1]
    if not chunk or length <= chunk:
        return f(first, queries)
    count = -(-length // chunk)

    def cut(x: jax.Array) -> jax.Array:
        x = pad_length(x, count * chunk)
        return jnp.moveaxis(x.reshape(x.shape[0], count, chunk, *x.shape[2:]), 1, 0)

    starts = first + chunk * jnp.arange(count)
    done = jax.lax.map(jax.checkpoint(lambda part: f(*part)), (starts, jax.tree.map(cut, queries)))
    done = jnp.moveaxis(done, 0, 1)
    return done.reshape(done.shape[0], -1, *done.shape[3:])[:, :length]


@flax.struct.dataclass
class Cache:
    """Key-value cache. Slots hold previous tokens in the order in which they were read.

    Attributes:
      key, value: [batch, key_value_heads, head_dim, slots] float32 of one layer, or
        [batch, layers, ...] of all scanned layers. Products with few queries
        read this order of axes without copying it.
    """

    key: jax.Array
    value: jax.Array

    @classmethod
    def empty(cls, config: TransformerConfig, batch: int, slots: int) -> "Caches":
        """Returns an empty cache of `slots` tokens for each of `batch` rows."""
        shape = (config.kv_heads, config.head_size, slots)
        if config.scan_layers:
            zeros = jnp.zeros((batch, config.layers, *shape))
            return cls(zeros, zeros)
        zeros = jnp.zeros((batch, *shape))
        return tuple(cls(zeros, zeros) for _ in range(config.layers))

    def write(self, key: jax.Array, value: jax.Array, start: jax.Array) -> Self:
        """Writes one layer's keys and values [batch, length, heads, head_dim] at slot `start`."""
        at = (0, 0, 0, start)
        return type(self)(
            jax.lax.dynamic_update_slice(self.key, key.transpose(0, 2, 3, 1), at),
            jax.lax.dynamic_update_slice(self.value, value.transpose(0, 2, 3, 1), at),
        )

    def read(self) -> tuple[jax.Array, jax.Array]:
        """Returns one layer's keys and values of all slots: [batch, slots, heads, head_dim]."""
        return self.key.transpose(0, 3, 1, 2), self.value.transpose(0, 3, 1, 2)


# Of all layers: scanned layers share one cache, and each unrolled layer has its own.
Caches: TypeAlias = Cache | tuple[Cache, ...]


def normalize(config: TransformerConfig, name: str | None = None) -> nn.Module:
    """Returns the trunk's normalization of the last axis."""
    if config.normalization == "rms_norm":
        return RMSNorm(config.layer_norm_epsilon, name=name)
    return LayerNorm(config.layer_norm_epsilon, config.norm_bias, name=name)


class SelfAttention(nn.Module):
    """Multi-head self-attention: [batch, length, hidden_size] -> the same.

    With a cache, the keys and values of `x` are written to its slots from `start` on, and
    queries attend to the slots where `mask` [batch, length, slots] is True.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        is_local: jax.Array | bool,
        mask: Mask | jax.Array,
        seeds: Seeds | None,
        cache: Cache | None = None,
        start: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """Attends.

        Args:
          positions: [batch, length] int, for rotary positions.
          is_local: [] bool, whether the layer attends only within `config.window`.
        """
        c = self.config

        def heads(name: str, count: int) -> jax.Array:
            dense = Dense(
                count * c.head_size,
                c.kernel_initializer(),
                use_bias=c.biases != "none",
                dtype=c.compute_dtype,
                name=name,
            )
            return dense(x).reshape(*x.shape[:-1], count, c.head_size)

        query = heads("query", c.heads)
        key, value = heads("key", c.kv_heads), heads("value", c.kv_heads)
        if c.query_key_norm:
            query, key = normalize(c, "query_norm")(query), normalize(c, "key_norm")(key)
        if c.positions == "rotary":
            turns: tuple[Any, Any] = rotary_frequencies(c.rotary, c.rotary.base, c.head_size)
            if c.window and c.rotary.local_base:
                local = rotary_frequencies(RotaryConfig(), c.rotary.local_base, c.head_size)
                turns = jax.tree.map(
                    lambda own, every: jnp.where(is_local, own, every), local, turns
                )
            angles = positions[..., None].astype(jnp.float32) * turns[0]
            query, key = rotate(query, angles, turns[1]), rotate(key, angles, turns[1])
        query, key, value = (
            tap(self, name, x) for name, x in zip(_PROJECTED, (query, key, value), strict=True)
        )
        if cache is not None:
            assert start is not None
            cache = cache.write(key, value, start)
            key, value = cache.read()
            context = cached_attention(query, key, value, as_mask(mask).dense(), c.compute_dtype)
        else:
            if (group := c.heads // c.kv_heads) > 1:
                key, value = (jnp.repeat(x, group, axis=2) for x in (key, value))
            context = attention(
                query,
                key,
                value,
                mask,
                rate=c.attention_dropout,
                seeds=seeds,
                dtype=c.compute_dtype,
                kernel=c.attention,
                chunk=c.query_chunk,
                tap=weights_tap(self, "weights"),
            )
        context = tap(self, "context", context)
        output = Dense(
            c.hidden_size,
            c.residual_initializer(),
            use_bias=c.biases == "all",
            dtype=c.compute_dtype,
            name="output",
        )
        y = output(context.reshape(*x.shape[:-1], -1))
        return tap(self, "written", dropout(y, c.dropout, seeds, OUTPUT)), cache


def cached_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array, dtype: jnp.dtype
) -> jax.Array:
    """Attends to the slots of a cache without copying them for each head of a group.

    A cache has slots that no query may attend to yet, which kernels do not support.

    Args:
      query: [batch, queries, heads, head_dim].
      key, value: [batch, slots, key_value_heads, head_dim].
      mask: [batch or 1, queries, slots] bool.

    Returns:
      [batch, queries, heads, head_dim] float32.
    """
    batch, count, heads, size = query.shape
    groups = heads // key.shape[2]
    if groups > 1:
        # The heads of a group become further queries of their key-value head.
        query = query.reshape(batch, count, key.shape[2], groups, size)
        query = query.transpose(0, 1, 3, 2, 4).reshape(batch, count * groups, key.shape[2], size)
        mask = jnp.repeat(mask, groups, axis=1)
    found = attention(query, key, value, mask, dtype=dtype, kernel="plain")
    if groups > 1:
        found = found.reshape(batch, count, groups, key.shape[2], size)
        found = found.transpose(0, 1, 3, 2, 4)
    return found.reshape(batch, count, heads, size)
