"""Embeddings, feed-forward layer, Transformer block and stack of blocks."""

from collections.abc import Callable
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.configuration import Interval
from lmjax.nn.attention import Cache, Caches, SelfAttention, normalize
from lmjax.nn.dropout import Seeds, dropout
from lmjax.nn.layers import ACTIVATIONS, Dense, Initializer, dense, embedding_lookup
from lmjax.nn.masks import Mask, as_mask, within
from lmjax.nn.partition import gathered, split_activations, whole_length
from lmjax.nn.positions import sinusoid
from lmjax.nn.trunk import TransformerConfig

ACTIVATION, FEED_FORWARD, EMBEDDING = 3, 4, 5  # dropout sites

# Number of rows of a segment table.
SegmentTypes = Annotated[int, Interval("[1, 1000]")]

# Names in the collection "intermediates", if it is mutable, of the hidden states that enter the
# first block, that leave each block, and of the final normalized ones.
ENTERING, LEAVING, NORMED = "entering", "leaving", "normed"


class Table(nn.Module):
    """An embedding table [rows, features]; with tied weights it is also the decoder."""

    rows: int
    features: int
    config: TransformerConfig
    std: float = 0.0  # 0 = the trunk's initializer

    def setup(self) -> None:
        own = nn.initializers.normal(self.std) if self.std else None
        initializer = own or self.config.initializer()
        self.embedding = self.param(
            "embedding", initializer, (self.rows, self.features), jnp.float32
        )

    def __call__(self, ids: jax.Array) -> jax.Array:
        """ids [...] -> [..., features]; ids outside the table give NaN."""
        return embedding_lookup(gathered(self.embedding), ids)

    def decode(self, x: jax.Array) -> jax.Array:
        """Returns the logits of all rows: [..., features] -> [..., rows], float32."""
        if self.config.base_width:
            x = x * (self.config.base_width / self.features)
        return dense(x, gathered(self.embedding).T, self.config.compute_dtype)


class TextEmbeddings(nn.Module):
    """Token + position + segment embeddings, with normalization and dropout, as in BERT.

    Attributes:
      features: embedding size (in ELECTRA it may differ from the trunk's hidden size).
      max_length: rows of the position table.
      segment_types: rows of the segment table; 0 = no table (GPT).
      norm: whether to apply layer normalization to the sum (BERT: yes, GPT: no).
      position_std: initial std of the position table (GPT-2: 0.01); 0 = the trunk's.
    """

    config: TransformerConfig
    vocab_size: int
    features: int
    max_length: int
    segment_types: int
    norm: bool
    position_std: float = 0.0

    def setup(self) -> None:
        c = self.config
        self.token = Table(self.vocab_size, self.features, c)
        if c.positions == "learned":
            self.position = Table(self.max_length, self.features, c, std=self.position_std)
        if self.segment_types:
            self.segment = Table(self.segment_types, self.features, c)
        if self.norm:
            self.embedding_norm = normalize(c)

    def __call__(
        self, tokens: jax.Array, segments: jax.Array, positions: jax.Array, seeds: Seeds | None
    ) -> jax.Array:
        """tokens, segments, positions: [batch, length] int -> [batch, length, features]."""
        x = self.token(tokens)
        if self.config.positions == "learned":
            x = x + self.position(positions)
        elif self.config.positions == "sinusoidal":
            x = x + sinusoid(positions.reshape(-1), self.features).reshape(x.shape)
        if self.segment_types:
            x = x + self.segment(segments)
        if self.norm:
            x = self.embedding_norm(x)
        return split_activations(dropout(x, self.config.dropout, seeds, EMBEDDING))

    def decode(self, x: jax.Array) -> jax.Array:
        """Decodes with the token table: [..., features] -> logits [..., vocab_size]."""
        return self.token.decode(x)


class PredictionTransform(nn.Module):
    """dense -> activation -> layer norm, before the tied decoder (BERT's masked LM head)."""

    config: TransformerConfig
    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        dense = Dense(
            self.features,
            c.kernel_initializer(),
            use_bias=c.biases == "all",
            dtype=c.compute_dtype,
            name="dense",
        )
        x = dense(x)
        return normalize(c, "norm")(ACTIVATIONS[c.activation](x))


def gather_positions(x: jax.Array, positions: jax.Array) -> jax.Array:
    """Gathers x [batch, length, features] at positions [batch, n] -> [batch, n, features]."""
    return whole_length(jnp.take_along_axis(x, positions[..., None], axis=1))


class FeedForward(nn.Module):
    """dense -> activation -> dense: [..., hidden_size] -> the same (Vaswani et al. §3.3).

    With `gated`, the activation is multiplied by a second dense layer (Shazeer 2020: SwiGLU with
    'silu', GEGLU with 'gelu').
    """

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: jax.Array, seeds: Seeds | None) -> jax.Array:
        c = self.config

        def layer(features: int, initializer: Initializer, name: str) -> Dense:
            return Dense(features, initializer, c.biases == "all", c.compute_dtype, name=name)

        inner = layer(c.intermediate_size, c.kernel_initializer(), "inner")
        outer = layer(c.hidden_size, c.residual_initializer(), "outer")
        # Recomputed in the backward pass: saving it would take up to five arrays of this size.
        y = jax.checkpoint(ACTIVATIONS[c.activation])(inner(x))
        if c.gated:
            y = y * layer(c.intermediate_size, c.kernel_initializer(), "gate")(x)
        y = dropout(y, c.activation_dropout, seeds, ACTIVATION)
        return dropout(outer(y), c.dropout, seeds, FEED_FORWARD)


def sublayer(
    config: TransformerConfig,
    norm: Callable[[jax.Array], jax.Array],
    x: jax.Array,
    f: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """norm(x + f(x)) for a post-norm trunk, x + f(norm(x)) for a pre-norm one."""
    if config.norm == "post":
        return norm(x + f(x))
    return x + f(norm(x))


class Block(nn.Module):
    """Self-attention and feed-forward, each a residual sublayer.

    carry: [batch, length, hidden_size]; `layer` is the index of the block. The output is the
    layer's cache with these tokens written from slot `start` on, or None without a cache.

    Attributes:
      norms_input: whether the input of the attention is normalized.
    """

    config: TransformerConfig
    norms_input: bool = True

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        layer: jax.Array,
        cache: Cache | None,
        positions: jax.Array,
        mask: Mask | jax.Array,
        seeds: Seeds | None,
        start: jax.Array | None,
    ) -> tuple[jax.Array, Cache | None]:
        c = self.config
        if seeds is not None:
            seeds = seeds.fold(layer)
        attend = SelfAttention(c, name="attention")
        feed_forward = FeedForward(c, name="feed_forward")
        normed = self.norms_input
        attention_norm = normalize(c, "attention_norm") if normed else lambda y: y
        feed_forward_norm = normalize(c, "feed_forward_norm")
        written = None
        is_local: jax.Array | bool = c.window > 0
        if c.unrotated_every:  # a rotation by the angles of position 0 changes nothing
            rotated = (layer + 1) % c.unrotated_every > 0
            positions = jnp.where(rotated, positions, 0)
        if c.window:
            if c.global_every:
                is_local = layer % c.global_every > 0
            length = x.shape[1]
            keys = length if cache is None else cache.key.shape[-1]
            farthest = jnp.where(is_local, c.window, keys)
            places = jnp.arange(length)[None] + (0 if start is None else start)
            mask = as_mask(mask) & within(farthest, places, jnp.arange(keys)[None])

        def attended(y: jax.Array) -> jax.Array:
            nonlocal written
            y, written = attend(y, positions, is_local, mask, seeds, cache, start)
            return y

        x = sublayer(c, attention_norm, x, attended)
        x = split_activations(sublayer(c, feed_forward_norm, x, lambda y: feed_forward(y, seeds)))
        self.sow("intermediates", LEAVING, x)
        return x, written


class Layers(nn.Module):
    """A sequence of `config.layers` blocks, scanned or unrolled.

    Attributes:
      block: module class called as `block(config)(carry, layer, per_layer, *shared)`,
        which returns (carry, output).
    """

    config: TransformerConfig
    block: Any

    @nn.compact
    def __call__(self, carry: Any, per_layer: Any, *shared: Any) -> tuple[Any, Any]:
        """Runs the blocks.

        Args:
          carry: value passed from block to block.
          per_layer: pytree of arrays with a leading axis [layers], or None. Unrolled blocks also
            take a tuple with a pytree for each layer, which are never joined.
          *shared: arguments that are the same for every block.

        Returns:
          (carry, outputs stacked on a leading axis [layers], or a tuple like `per_layer`).
        """
        c = self.config
        block = self.block
        if c.remat:
            policy = getattr(jax.checkpoint_policies, c.remat)
            block = nn.remat(block, prevent_cse=not c.scan_layers, policy=policy)
        indices = jnp.arange(c.layers, dtype=jnp.uint32)
        self.sow("intermediates", ENTERING, carry[0] if isinstance(carry, tuple) else carry)
        if c.scan_layers:
            scanned = nn.scan(
                block,
                variable_axes={"params": 0, "intermediates": 0},
                split_rngs={"params": True},
                in_axes=(0, 0, *[nn.broadcast] * len(shared)),
                length=c.layers,
            )
            return scanned(c, name="layers")(carry, indices, per_layer, *shared)
        apart, outputs = isinstance(per_layer, tuple), []
        for i in range(c.layers):
            mine = per_layer[i] if apart else jax.tree.map(lambda leaf, i=i: leaf[i], per_layer)
            own = {} if i or c.first_norm else {"norms_input": False}
            carry, output = block(c, name=f"layer_{i}", **own)(carry, indices[i], mine, *shared)
            outputs.append(output)
        if apart:
            return carry, tuple(outputs)
        return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)


class Stack(nn.Module):
    """The trunk: [batch, length, hidden_size] -> the same; 'pre' norm adds a final norm."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        mask: Mask | jax.Array,
        seeds: Seeds | None,
        cache: Caches | None = None,
        start: jax.Array | None = None,
    ) -> tuple[jax.Array, Caches | None]:
        """Returns the hidden states and the updated cache, or None without a cache.

        positions: [batch, length] int; only rotary positions depend on them.
        """
        scanned = self.config.scan_layers
        if scanned:
            cache = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), cache)
        x, cache = Layers(self.config, Block, name="blocks")(
            x, cache, positions, mask, seeds, start
        )
        if scanned:
            cache = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), cache)
        if self.config.norm == "pre":
            x = normalize(self.config, "final_norm")(x)
            self.sow("intermediates", NORMED, x)
        return x, cache
