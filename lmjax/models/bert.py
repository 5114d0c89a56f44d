"""BERT (Devlin et al. 2018): a bidirectional encoder with masked-LM and sentence heads."""

import dataclasses

import flax.linen as nn
import jax

from lmjax.configuration import Size, VocabSize, check_ranges
from lmjax.nn.dropout import Seeds
from lmjax.nn.embeddings import (
    PredictionTransform,
    SegmentTypes,
    Table,
    TextEmbeddings,
    gather_positions,
)
from lmjax.nn.layers import Dense
from lmjax.nn.masks import Mask
from lmjax.nn.transformer import Stack
from lmjax.nn.trunk import TransformerConfig


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """BERT's settings.

    Attributes:
      trunk: the Transformer.
      max_length: rows of the position table; no sequence may be longer.
      segment_types: rows of the segment table.
      tie_embeddings: the masked-LM head decodes with the token table.
      vocab_size: rows of the token table; 0 = as many as the tokenizer has.
    """

    trunk: TransformerConfig
    max_length: Size = 512
    segment_types: SegmentTypes = 2
    tie_embeddings: bool = True
    vocab_size: VocabSize = 0

    def __post_init__(self) -> None:
        check_ranges(self)


class BertEncoder(nn.Module):
    """Embeddings and trunk: ids [batch, length] -> [batch, length, hidden_size]."""

    config: BertConfig

    def setup(self) -> None:
        c = self.config
        self.embeddings = TextEmbeddings(
            c.trunk,
            vocab_size=c.vocab_size,
            features=c.trunk.hidden_size,
            max_length=c.max_length,
            segment_types=c.segment_types,
            norm=True,
        )
        self.stack = Stack(c.trunk)

    def __call__(
        self,
        tokens: jax.Array,
        segments: jax.Array,
        positions: jax.Array,
        mask: Mask | jax.Array,
        seeds: Seeds | None = None,
    ) -> jax.Array:
        """mask: boolean, broadcasts to [batch, length, length]; True = may attend."""
        return self.stack(self.embeddings(tokens, segments, positions, seeds), mask, seeds)[0]

    def decode(self, x: jax.Array) -> jax.Array:
        return self.embeddings.decode(x)


class BertPooler(nn.Module):
    """tanh(dense(first token)): [batch, length, hidden_size] -> [batch, hidden_size]."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        c = self.config
        dense = Dense(c.hidden_size, c.kernel_initializer(), dtype=c.compute_dtype, name="dense")
        return nn.tanh(dense(hidden[:, 0]))


class BertWithPooler(nn.Module):
    """The encoder and its pooler without any head, as published encoders come."""

    config: BertConfig

    def setup(self) -> None:
        self.encoder = BertEncoder(self.config)
        self.pooler = BertPooler(self.config.trunk)

    def __call__(
        self,
        tokens: jax.Array,
        segments: jax.Array,
        positions: jax.Array,
        mask: Mask | jax.Array,
        seeds: Seeds | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Hidden states [batch, length, hidden_size] and their pool [batch, hidden_size]."""
        hidden = self.encoder(tokens, segments, positions, mask, seeds)
        return hidden, self.pooler(hidden)


class BertForPreTraining(nn.Module):
    """The encoder with both heads of pretraining.

    Attributes:
      sentence_head: pooler and the two-way sentence classifier (NSP, or SOP in its place).
    """

    config: BertConfig
    sentence_head: bool = True

    def setup(self) -> None:
        c = self.config
        self.encoder = BertEncoder(c)
        self.transform = PredictionTransform(c.trunk, c.trunk.hidden_size)
        self.output_bias = self.param("output_bias", nn.initializers.zeros, (c.vocab_size,))
        if not c.tie_embeddings:
            self.decoder = Table(c.vocab_size, c.trunk.hidden_size, c.trunk)
        if self.sentence_head:
            self.pooler = BertPooler(c.trunk)
            self.sentence = Dense(2, c.trunk.initializer())

    def __call__(
        self,
        tokens: jax.Array,
        segments: jax.Array,
        positions: jax.Array,
        mask: Mask | jax.Array,
        target_positions: jax.Array,
        seeds: Seeds | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Scores the vocabulary at `target_positions` [batch, num_predict] only.

        Returns:
          masked-LM logits [batch, num_predict, vocab_size] and sentence logits [batch, 2],
          or None without a sentence head.
        """
        hidden = self.encoder(tokens, segments, positions, mask, seeds)
        targets = self.transform(gather_positions(hidden, target_positions))
        decoder = self.encoder if self.config.tie_embeddings else self.decoder
        logits = decoder.decode(targets) + self.output_bias
        if not self.sentence_head:
            return logits, None
        return logits, self.sentence(self.pooler(hidden))
