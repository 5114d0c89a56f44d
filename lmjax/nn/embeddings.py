"""Input embeddings and the output layers that turn hidden states into logits."""

from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.configuration import Interval
from lmjax.nn.dropout import Seeds, dropout
from lmjax.nn.layers import ACTIVATIONS, Dense, LayerNorm, dense, embedding_lookup
from lmjax.nn.partition import gathered, split_activations, whole_length
from lmjax.nn.trunk import TransformerConfig

EMBEDDING = 5  # dropout site

# Number of rows of a segment table.
SegmentTypes = Annotated[int, Interval("[1, 1000]")]


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
    """Token + position + segment embeddings, with layer norm and dropout, as in BERT.

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
        self.position = Table(self.max_length, self.features, c, std=self.position_std)
        if self.segment_types:
            self.segment = Table(self.segment_types, self.features, c)
        if self.norm:
            self.embedding_norm = LayerNorm(c.layer_norm_epsilon)

    def __call__(
        self, tokens: jax.Array, segments: jax.Array, positions: jax.Array, seeds: Seeds | None
    ) -> jax.Array:
        """tokens, segments, positions: [batch, length] int -> [batch, length, features]."""
        x = self.token(tokens) + self.position(positions)
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
        x = Dense(self.features, c.kernel_initializer(), dtype=c.compute_dtype, name="dense")(x)
        return LayerNorm(c.layer_norm_epsilon, name="norm")(ACTIVATIONS[c.activation](x))


def gather_positions(x: jax.Array, positions: jax.Array) -> jax.Array:
    """Gathers x [batch, length, features] at positions [batch, n] -> [batch, n, features]."""
    return whole_length(jnp.take_along_axis(x, positions[..., None], axis=1))
