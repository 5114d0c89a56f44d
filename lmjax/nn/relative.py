"""Transformer-XL's relative attention and XLNet's two streams.

Dai et al. 2019 (§3.3) and Yang et al. 2019 (§2.3-2.6, App. A); the arithmetic follows
the authors' `modeling.py`.
"""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from lmjax.nn.attention import OUTPUT, attention_weights, by_chunks, normalize
from lmjax.nn.dropout import Seeds, Window, dropout
from lmjax.nn.layers import Dense, contract
from lmjax.nn.masks import Mask
from lmjax.nn.partition import over_queries, split_activations
from lmjax.nn.positions import relative_shift, relative_shift_at
from lmjax.nn.taps import tap, weights_tap
from lmjax.nn.transformer import LEAVING, FeedForward
from lmjax.nn.trunk import TransformerConfig

# Salt that separates the query stream's dropout masks from the content stream's.
QUERY_STREAM = 16


@flax.struct.dataclass
class RelativeContext:
    """Inputs of relative attention besides queries, keys and values.

    `keys` includes the memory, which comes first. Row p of the keys + length rows of `encoding`
    is the encoding of the distance keys - p.

    Attributes:
      encoding: [keys + length, hidden_size], or [2, keys + length, hidden_size] for forward and
        backward text, indexed by `direction`.
      direction: [batch] int, 0 = forward, 1 = backward; None without backward text.
      content_mask: attention mask of the content stream, [batch, length, keys].
      content_same_segment: True where query and key share a segment, [batch, length, keys].
      query_mask: attention mask of the query stream, [batch, num_predict, keys]; None without
        the query stream.
      query_same_segment: as `content_same_segment`, [batch, num_predict, keys].
      target_mapping: [batch, num_predict] int, the position that each query predicts: the
        paper's one-hot `target_mapping` as indices.
    """

    encoding: jax.Array
    direction: jax.Array | None
    content_mask: Mask
    content_same_segment: Mask
    query_mask: Mask | None = None
    query_same_segment: Mask | None = None
    target_mapping: jax.Array | None = None


KeysValues = tuple[jax.Array, jax.Array]  # [batch, keys, heads, head_dim] each


class RelativeAttention(nn.Module):
    """Multi-head attention with content, position and segment terms and no projection biases.

    score(i, j) = [(q_i + content_bias) k_j + (q_i + position_bias) W_r R_{i-j}
                   + (q_i + segment_bias) s_{ij}] / sqrt(head_dim)
    """

    config: TransformerConfig

    def setup(self) -> None:
        c = self.config
        width, shape = c.heads * c.head_size, (c.heads, c.head_size)

        def projection(features: int) -> Dense:
            return Dense(features, c.kernel_initializer(), use_bias=False, dtype=c.compute_dtype)

        self.query = projection(width)
        self.key = projection(width)
        self.value = projection(width)
        self.relative = projection(width)
        self.output = projection(c.hidden_size)
        self.content_bias = self.param("content_bias", c.initializer(), shape, jnp.float32)
        self.position_bias = self.param("position_bias", c.initializer(), shape, jnp.float32)
        self.segment_bias = self.param("segment_bias", c.initializer(), shape, jnp.float32)
        self.segment_embedding = self.param(
            "segment_embedding", c.initializer(), (2, *shape), jnp.float32
        )

    def heads(self, projected: jax.Array) -> jax.Array:
        return projected.reshape(*projected.shape[:-1], self.config.heads, self.config.head_size)

    def keys_values(self, h: jax.Array, tapped: bool = False) -> KeysValues:
        """h: [batch, keys, hidden_size] -> two [batch, keys, heads, head_dim]."""
        key, value = self.heads(self.key(h)), self.heads(self.value(h))
        return (tap(self, "keys", key), tap(self, "values", value)) if tapped else (key, value)

    def positions(self, context: RelativeContext) -> jax.Array:
        """Projects the encoding -> [columns, heads, head_dim], or [2, ...] with directions."""
        return self.heads(self.relative(context.encoding))

    def attend(
        self,
        x: jax.Array,
        own: KeysValues,
        memory: KeysValues | None,
        positions: jax.Array,
        direction: jax.Array | None,
        mask: Mask,
        same_segment: Mask,
        target_mapping: jax.Array | None,
        seeds: Seeds | None,
        stream: str = "",
    ) -> jax.Array:
        """Attention of one stream. x: [batch, queries, hidden_size] -> the same shape.

        Args:
          own, memory: keys and values of this segment and of the memory before it.
          positions: the result of `positions`; `direction` selects the encoding of each row.
          target_mapping: None for the content stream, whose queries are all positions.
          stream: begins the names of the taps.
        """
        c = self.config
        dtype, length = c.compute_dtype, own[0].shape[1]
        biases = (self.content_bias, self.position_bias, self.segment_bias)
        tap_weights = weights_tap(self, f"{stream}weights")

        def rows(first: Any, queries_here: Any, own: KeysValues, shared: Any) -> jax.Array:
            memory, positions, direction, masks, seeds, biases, segment_embedding = shared
            positions = positions if direction is None else positions[direction]
            key, value = own if memory is None else _joined(memory, own)

            def block(start: Any, here: Any) -> jax.Array:
                query, target_mapping = here
                count = query.shape[1]
                mask, same_segment = (m.rows(start, count) for m in masks)
                content, position, segment = (query + bias for bias in biases)
                scores = contract("bqhd,bkhd->bhqk", content, key, dtype)
                scores += _by_distance(
                    position, positions, key, length, start, target_mapping, dtype
                )
                by_segment = contract("bqhd,shd->sbhq", segment, segment_embedding, dtype)
                scores += jnp.where(
                    same_segment[:, None], by_segment[0, ..., None], by_segment[1, ..., None]
                )
                window = Window(2, start)
                scores *= c.head_size**-0.5
                weights = attention_weights(scores, mask, c.attention_dropout, seeds, window)
                if tap_weights is not None:
                    weights = tap_weights(weights)
                return contract("bhqk,bkhd->bqhd", weights, value, dtype)

            if tap_weights is not None:
                return block(first, queries_here)
            return by_chunks(block, first, queries_here, c.query_chunk)

        shared = (
            memory,
            positions,
            direction,
            (mask, same_segment),
            seeds,
            biases,
            self.segment_embedding,
        )
        query = tap(self, f"{stream}queries", self.heads(self.query(x)))
        if tap_weights is not None:
            y = rows(0, (query, target_mapping), own, shared)
        else:
            y = over_queries(rows, (query, target_mapping), own, shared)
        y = tap(self, f"{stream}context", y)
        y = dropout(self.output(y.reshape(*x.shape[:-1], -1)), c.dropout, seeds, OUTPUT)
        return tap(self, f"{stream}written", y)


def _joined(memory: KeysValues, own: KeysValues) -> KeysValues:
    """Concatenates the keys and values of the memory and of the segment."""
    key, value = (jnp.concatenate(both, axis=1) for both in zip(memory, own, strict=True))
    return key, value


def _by_distance(
    query: jax.Array,
    positions: jax.Array,
    key: jax.Array,
    length: int,
    start: jax.Array | int,
    target_mapping: jax.Array | None,
    dtype: Any,
) -> jax.Array:
    """Computes the position term of the scores, [batch, heads, queries, keys].

    Args:
      query: [batch, queries, heads, head_dim], the queries from `start` on, or those at the
        positions `target_mapping` [batch, queries].
      positions: [columns, heads, head_dim], optionally with a leading batch axis.
    """
    spec = "bqhd,phd->bhqp" if positions.ndim == 3 else "bqhd,bphd->bhqp"
    keys, count = key.shape[1], query.shape[1]
    if target_mapping is not None:
        by_distance = contract(spec, query, positions, dtype)
        return relative_shift_at(by_distance, target_mapping, length)
    if count != length:
        # These queries use keys + count of the keys + length distances. The last chunk may extend
        # beyond the segment, where there are no distances; those queries are discarded.
        axis = positions.ndim - 3
        beyond = [(0, 0)] * positions.ndim
        beyond[axis] = (count, 0)
        positions = jax.lax.dynamic_slice_in_dim(
            jnp.pad(positions, beyond), length - start, keys + count, axis
        )
    return relative_shift(contract(spec, query, positions, dtype), keys)


class TwoStreamBlock(nn.Module):
    """Post-norm block of XLNet; both streams use the same parameters.

    carry: (h, g), the content stream [batch, length, hidden_size] and the query stream
    [batch, num_predict, hidden_size] or None. The block outputs its input h, which becomes
    memory.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(
        self,
        carry: tuple[jax.Array, jax.Array | None],
        layer: jax.Array,
        mems: jax.Array | None,
        context: RelativeContext,
        seeds: Seeds | None,
    ) -> tuple[tuple[jax.Array, jax.Array | None], jax.Array]:
        c = self.config
        h, g = carry
        seeds = None if seeds is None else seeds.fold(layer)
        attention = RelativeAttention(c, name="attention")
        attention_norm = normalize(c, "attention_norm")
        feed_forward = FeedForward(c, name="feed_forward")
        feed_forward_norm = normalize(c, "feed_forward_norm")

        own = attention.keys_values(h, tapped=True)
        memory = None if mems is None else attention.keys_values(mems)
        positions = attention.positions(context)

        def stream(
            x: jax.Array,
            mask: Mask,
            same_segment: Mask,
            mapping: jax.Array | None,
            seeds: Seeds | None,
            name: str = "",
        ) -> jax.Array:
            attended = attention.attend(
                x,
                own,
                memory,
                positions,
                context.direction,
                mask,
                same_segment,
                mapping,
                seeds,
                name,
            )
            x = attention_norm(x + attended)
            return feed_forward_norm(x + feed_forward(x, seeds, name))

        if g is not None:
            assert context.query_mask is not None and context.query_same_segment is not None
            g_seeds = None if seeds is None else seeds.fold(QUERY_STREAM)
            g = stream(
                g,
                context.query_mask,
                context.query_same_segment,
                context.target_mapping,
                g_seeds,
                "query_stream_",
            )
        new_h = stream(h, context.content_mask, context.content_same_segment, None, seeds)
        new_h = split_activations(new_h)
        if g is not None:
            g = tap(self, f"query_stream_{LEAVING}", split_activations(g))
        return (tap(self, LEAVING, new_h), g), h
