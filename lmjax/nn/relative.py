"""Transformer-XL's relative attention and XLNet's two streams.

Dai et al. 2019 (§3.3) and Yang et al. 2019 (§2.3-2.6, App. A); the arithmetic follows
the authors' `modeling.py`.
"""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from lmjax.nn.attention import OUTPUT, attention_weights
from lmjax.nn.dropout import Seeds, dropout
from lmjax.nn.layers import Dense, LayerNorm, contract
from lmjax.nn.positions import relative_shift, relative_shift_at
from lmjax.nn.transformer import LEAVING, FeedForward
from lmjax.nn.trunk import TransformerConfig

# The salt that sets the query stream's dropout apart from the content stream's.
QUERY_STREAM = 16


@flax.struct.dataclass
class RelativeContext:
    """What relative attention needs besides queries, keys and values.

    `keys` counts the memory, which comes first; row p of `encoding` stands for the
    distance keys - p, for keys + length rows.

    Attributes:
      encoding: [keys + length, hidden_size], or [2, keys + length, hidden_size] for
        text read forward and backward, when `direction` chooses.
      direction: [batch] int, 0 forward or 1 backward; None without backward text.
      content_mask: [batch, length, keys] bool.
      content_differs: [batch, length, keys] bool, query and key in different segments.
      query_mask: [batch, num_predict, keys] bool; None without the query stream.
      query_differs: [batch, num_predict, keys] bool.
      target_mapping: [batch, num_predict] int, the position that each query predicts:
        the paper's one-hot `target_mapping` as indices.
    """

    encoding: jax.Array
    direction: jax.Array | None
    content_mask: jax.Array
    content_differs: jax.Array
    query_mask: jax.Array | None = None
    query_differs: jax.Array | None = None
    target_mapping: jax.Array | None = None


class RelativeAttention(nn.Module):
    """Multi-head attention with content, position and segment terms, no projection biases.

    score(i, j) = [(q_i + content_bias) k_j + (q_i + position_bias) W_r R_{i-j}
                   + (q_i + segment_bias) s_{ij}] / sqrt(head_dim)
    """

    config: TransformerConfig

    def setup(self) -> None:
        c = self.config
        width, shape = c.heads * c.head_size, (c.heads, c.head_size)

        def projection(features: int) -> Dense:
            return Dense(features, c.initializer(), use_bias=False, dtype=c.compute_dtype)

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

    def keys_values(self, h: jax.Array) -> tuple[jax.Array, jax.Array]:
        """h: [batch, keys, hidden_size] -> two [batch, keys, heads, head_dim]."""
        return self.heads(self.key(h)), self.heads(self.value(h))

    def positions(self, context: RelativeContext) -> jax.Array:
        """[columns, heads, head_dim], or [batch, columns, heads, head_dim] with directions."""
        encoded = self.heads(self.relative(context.encoding))
        return encoded if context.direction is None else encoded[context.direction]

    def attend(
        self,
        x: jax.Array,
        key: jax.Array,
        value: jax.Array,
        positions: jax.Array,
        mask: jax.Array,
        differs: jax.Array,
        target_mapping: jax.Array | None,
        length: int,
        seeds: Seeds | None,
    ) -> jax.Array:
        """One stream. x: [batch, queries, hidden_size] -> the same.

        `target_mapping` is None for the content stream, whose queries are all positions.
        """
        c = self.config
        dtype = c.compute_dtype
        query = self.heads(self.query(x))
        scores = contract("bqhd,bkhd->bhqk", query + self.content_bias, key, dtype)
        spec = "bqhd,phd->bhqp" if positions.ndim == 3 else "bqhd,bphd->bhqp"
        by_distance = contract(spec, query + self.position_bias, positions, dtype)
        if target_mapping is None:
            scores += relative_shift(by_distance, key.shape[1])
        else:
            scores += relative_shift_at(by_distance, target_mapping, length)
        by_segment = contract(
            "bqhd,shd->sbhq", query + self.segment_bias, self.segment_embedding, dtype
        )
        scores += jnp.where(differs[:, None], by_segment[1, ..., None], by_segment[0, ..., None])
        weights = attention_weights(scores * c.head_size**-0.5, mask, c.attention_dropout, seeds)
        y = contract("bhqk,bkhd->bqhd", weights, value, dtype)
        return dropout(self.output(y.reshape(*x.shape[:-1], -1)), c.dropout, seeds, OUTPUT)


class TwoStreamBlock(nn.Module):
    """Post-norm block of XLNet: the same parameters for both streams.

    carry: (h, g), the content stream [batch, length, hidden_size] and the query stream
    [batch, num_predict, hidden_size] or None. The block's output is its input h, which
    becomes memory.
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
        attention_norm = LayerNorm(c.layer_norm_epsilon, name="attention_norm")
        feed_forward = FeedForward(c, name="feed_forward")
        feed_forward_norm = LayerNorm(c.layer_norm_epsilon, name="feed_forward_norm")

        memory = h if mems is None else jnp.concatenate([mems, h], axis=1)
        key, value = attention.keys_values(memory)
        positions = attention.positions(context)
        length = h.shape[1]

        def stream(
            x: jax.Array,
            mask: jax.Array,
            differs: jax.Array,
            mapping: jax.Array | None,
            seeds: Seeds | None,
        ) -> jax.Array:
            attended = attention.attend(
                x, key, value, positions, mask, differs, mapping, length, seeds
            )
            x = attention_norm(x + attended)
            return feed_forward_norm(x + feed_forward(x, seeds))

        if g is not None:
            assert context.query_mask is not None and context.query_differs is not None
            g_seeds = None if seeds is None else seeds.fold(QUERY_STREAM)
            g = stream(
                g, context.query_mask, context.query_differs, context.target_mapping, g_seeds
            )
        new_h = stream(h, context.content_mask, context.content_differs, None, seeds)
        self.sow("intermediates", LEAVING, new_h)
        return (new_h, g), h
