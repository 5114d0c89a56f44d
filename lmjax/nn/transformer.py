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
from lmjax.nn.taps import EDITS, TAPS, WEIGHTS, tap
from lmjax.nn.trunk import TransformerConfig

ACTIVATION, FEED_FORWARD, EMBEDDING = 3, 4, 5  # dropout sites

# Number of rows of a segment table.
SegmentTypes = Annotated[int, Interval("[1, 1000]")]

# Taps of the hidden states that enter the first block, that leave each block, and of the final
# normalized ones.
ENTERING, LEAVING, NORMED = "entering", "leaving", "normed"


class Table(nn.Module):
    """An embedding table [rows, features]; with tied weights it is also the decoder.

    Attributes:
      std: initial standard deviation; 0 = the trunk's initializer.
      base: a table whose rows are added to those of this one, which starts at 0. No gradient flows
        into the base.
    """

    rows: int
    features: int
    config: TransformerConfig
    std: float = 0.0
    base: "Table | None" = None

    def setup(self) -> None:
        own = nn.initializers.normal(self.std) if self.std else None
        if self.base is not None:
            own = nn.initializers.zeros
        initializer = own or self.config.initializer()
        self.embedding = self.param(
            "embedding", initializer, (self.rows, self.features), jnp.float32
        )

    def __call__(self, ids: jax.Array) -> jax.Array:
        """ids [...] -> [..., features]; ids outside the table give NaN."""
        rows = embedding_lookup(gathered(self.embedding), ids)
        return rows if self.base is None else jax.lax.stop_gradient(self.base(ids)) + rows

    def decode(self, x: jax.Array) -> jax.Array:
        """Returns the logits of all rows: [..., features] -> [..., rows], float32."""
        assert self.base is None  # such a table only embeds
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
      base: embeddings of another module, of the same sizes, whose tables are the `base` of these.
    """

    config: TransformerConfig
    vocab_size: int
    features: int
    max_length: int
    segment_types: int
    norm: bool
    position_std: float = 0.0
    base: "TextEmbeddings | None" = None

    def setup(self) -> None:
        c = self.config

        def table(name: str, rows: int, std: float = 0.0) -> Table:
            base = None if self.base is None else getattr(self.base, name)
            return Table(rows, self.features, c, std, base)

        self.token = table("token", self.vocab_size)
        if c.positions == "learned":
            self.position = table("position", self.max_length, self.position_std)
        if self.segment_types:
            self.segment = table("segment", self.segment_types)
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
    def __call__(self, x: jax.Array, seeds: Seeds | None, stream: str = "") -> jax.Array:
        """stream: begins the names of the taps, if the layer is applied to several streams."""
        c = self.config

        def layer(features: int, initializer: Initializer, name: str) -> Dense:
            return Dense(features, initializer, c.biases == "all", c.compute_dtype, name=name)

        inner = layer(c.intermediate_size, c.kernel_initializer(), "inner")
        outer = layer(c.hidden_size, c.residual_initializer(), "outer")
        # Recomputed in the backward pass: saving it would take up to five arrays of this size.
        y = jax.checkpoint(ACTIVATIONS[c.activation])(inner(x))
        if c.gated:
            y = y * layer(c.intermediate_size, c.kernel_initializer(), "gate")(x)
        y = tap(self, f"{stream}neurons", y)
        y = dropout(y, c.activation_dropout, seeds, ACTIVATION)
        return tap(self, f"{stream}written", dropout(outer(y), c.dropout, seeds, FEED_FORWARD))


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
        return tap(self, LEAVING, x), written


def rematerialized(block: Any, config: TransformerConfig, *, prevent_cse: bool = True) -> Any:
    """Returns the module class with the trunk's `remat` policy."""
    if not config.remat:
        return block
    policy = getattr(jax.checkpoint_policies, config.remat)
    return nn.remat(block, prevent_cse=prevent_cse, policy=policy)


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
        block = rematerialized(self.block, c, prevent_cse=not c.scan_layers)
        indices = jnp.arange(c.layers, dtype=jnp.uint32)
        if isinstance(carry, tuple):
            carry = (tap(self, ENTERING, carry[0]), *carry[1:])
        else:
            carry = tap(self, ENTERING, carry)
        if c.scan_layers:
            scanned = nn.scan(
                block,
                variable_axes={"params": 0, TAPS: 0, WEIGHTS: 0, EDITS: 0},
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

    def setup(self) -> None:
        self.blocks = Layers(self.config, Block)
        if self.config.norm == "pre":
            self.final_norm = normalize(self.config)

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
        x, cache = self.blocks(x, cache, positions, mask, seeds, start)
        if scanned:
            cache = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), cache)
        if self.config.norm == "pre":
            x = tap(self, NORMED, self.normed(x))
        return x, cache

    def normed(self, x: jax.Array) -> jax.Array:
        """Applies the final norm of a 'pre' trunk; returns `x` of a 'post' trunk."""
        return self.final_norm(x) if self.config.norm == "pre" else x
