"""XLNet (Yang et al. 2019): two-stream attention over a Transformer-XL memory."""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.configuration import NonNegativeInt, OptionalSize, VocabSize, check_ranges
from lmjax.errors import ConfigError
from lmjax.nn.dropout import Seeds, dropout, shared_dropout
from lmjax.nn.embeddings import Table
from lmjax.nn.masks import Mask, Pairs, as_mask, content, with_memory
from lmjax.nn.partition import pad_length, sequence_parts, split_activations, whole_length
from lmjax.nn.positions import relative_distances, sinusoid
from lmjax.nn.relative import QUERY_STREAM, RelativeContext, TwoStreamBlock
from lmjax.nn.transformer import Layers
from lmjax.nn.trunk import TransformerConfig

EMBEDDING, ENCODING, FINAL = 32, 33, 34  # dropout sites


@dataclasses.dataclass(frozen=True)
class XlnetConfig:
    """XLNet's settings.

    Attributes:
      trunk: the Transformer, post-norm; its attention has no projection biases.
      memory_length: hidden states of earlier text kept for each layer (mem_len).
      clamp_length: relative distances beyond it count as it; 0 = no limit (clamp_len).
      attention_type: 'bi', or 'uni' where nobody sees what comes later (attn_type).
      same_length: with 'uni', the farther into a segment a token stands, the fewer of the
        oldest keys it sees (same_length).
      tie_embeddings: the output decodes with the token table.
      vocab_size: rows of the token table; 0 = as many as the tokenizer has.
    """

    trunk: TransformerConfig
    memory_length: OptionalSize = 0
    clamp_length: NonNegativeInt = 0
    attention_type: Literal["bi", "uni"] = "bi"
    same_length: bool = False
    tie_embeddings: bool = True
    vocab_size: VocabSize = 0

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.trunk.norm != "post":
            raise ConfigError("trunk.norm: XLNet is defined with 'post' norm only")
        if self.trunk.attention not in ("auto", "plain"):
            raise ConfigError(
                f"trunk.attention: '{self.trunk.attention}' knows no distances, which XLNet's"
                " scores depend on; use 'auto', and trunk.query_chunk for long texts"
            )
        if self.trunk.hidden_size % 2:
            raise ConfigError("trunk.hidden_size: must be even for sinusoidal distances")


class XlnetEncoder(nn.Module):
    """The two streams.

    There are no absolute positions, no embedding norm and no segment embeddings added
    to the words: both are terms of the attention scores (App. A of the paper).
    """

    config: XlnetConfig

    def setup(self) -> None:
        c = self.config
        self.token = Table(c.vocab_size, c.trunk.hidden_size, c.trunk)
        # The authors pass no initializer, which is Glorot uniform in TensorFlow 1.
        self.mask_embedding = self.param(
            "mask_embedding", nn.initializers.glorot_uniform(), (1, c.trunk.hidden_size)
        )
        self.layers = Layers(c.trunk, TwoStreamBlock)

    def __call__(
        self,
        tokens: jax.Array,
        segments: jax.Array,
        positions: jax.Array,
        mask: Mask | jax.Array,
        seeds: Seeds | None = None,
    ) -> jax.Array:
        """The content stream alone; `positions` are there for the other encoders' sake."""
        del positions
        return self.streams(tokens, segments, mask, seeds=seeds)[0]

    def streams(
        self,
        tokens: jax.Array,
        segments: jax.Array,
        mask: Mask | jax.Array,
        mems: jax.Array | None = None,
        target_mapping: jax.Array | None = None,
        direction: jax.Array | None = None,
        reuse_length: int = 0,
        seeds: Seeds | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """One segment.

        Args:
          tokens, segments: [batch, length] int; segments are compared for equality only.
          mask: of [batch, length, length], who may see whom; nobody need see itself:
            the content stream always does, the query stream does as the mask says.
          mems: [layers, batch, memory_length, hidden_size], inputs of each layer for
            earlier text, seen by all; None without memory.
          target_mapping: [batch, num_predict] int, the positions to predict, whose own
            tokens the query stream does not see; None: no query stream, all positions
            are read from the content stream (fine-tuning).
          direction: [batch] int, +1 or -1 where the text is reversed; None = all +1
            (bi_data).
          reuse_length: how many of this segment's states enter the memory (reuse_len);
            0 = all.

        Returns:
          hidden states [batch, num_predict or length, hidden_size] after dropout, and
          the memory for the next segment, behind a stop_gradient.
        """
        trunk = self.config.trunk
        length, parts = tokens.shape[1], sequence_parts()
        memory_length = 0 if mems is None else mems.shape[2]
        keys = memory_length + length

        key_segments = jnp.pad(segments, ((0, 0), (memory_length, 0)))
        same_segment = Pairs(segments, key_segments, "equal")
        mask = with_memory(as_mask(mask), memory_length)
        if self.config.attention_type == "uni":
            mask &= _unidirectional(length, keys, self.config.same_length)
        context = RelativeContext(
            encoding=self._encoding(length, keys, direction is not None, seeds),
            direction=None if direction is None else (direction < 0).astype(jnp.int32),
            content_mask=content(mask, length, keys),
            content_same_segment=same_segment,
        )
        h = split_activations(dropout(self.token(tokens), trunk.dropout, seeds, EMBEDDING))
        g = None
        if target_mapping is not None:
            num_predict = target_mapping.shape[1]
            target_mapping = pad_length(target_mapping, -(-num_predict // parts) * parts)
            context = dataclasses.replace(
                context,
                query_mask=mask.take(target_mapping),
                query_same_segment=same_segment.take(target_mapping),
                target_mapping=target_mapping,
            )
            g = jnp.broadcast_to(
                self.mask_embedding, (*target_mapping.shape, self.mask_embedding.shape[-1])
            )
            g_seeds = None if seeds is None else seeds.fold(QUERY_STREAM)
            g = split_activations(dropout(g, trunk.dropout, g_seeds, EMBEDDING))

        (h, g), inputs = self.layers((h, g), mems, context, seeds)
        output = h if g is None else whole_length(g)[:, :num_predict]
        output = dropout(output, trunk.dropout, seeds, FINAL)
        return output, self._new_mems(mems, inputs, reuse_length)

    def decode(self, x: jax.Array) -> jax.Array:
        return self.token.decode(x)

    def _encoding(
        self, length: int, keys: int, both_directions: bool, seeds: Seeds | None
    ) -> jax.Array:
        """Encoded distances [keys + length, hidden_size]; [2, ...] with negated ones second.

        The dropout mask is one for the batch, since the encoding has no batch axis.
        """
        c = self.config
        distances = relative_distances(length, keys, c.clamp_length)
        encoding = sinusoid(distances, c.trunk.hidden_size)
        if both_directions:
            encoding = jnp.stack([encoding, sinusoid(-distances, c.trunk.hidden_size)])
        return shared_dropout(encoding, c.trunk.dropout, seeds, ENCODING)

    def _new_mems(
        self, mems: jax.Array | None, inputs: jax.Array, reuse_length: int
    ) -> jax.Array | None:
        """The last `memory_length` of (old memory; this segment's reused inputs)."""
        if not self.config.memory_length:
            return None
        if reuse_length:
            inputs = inputs[:, :, :reuse_length]
        if mems is not None:
            inputs = jnp.concatenate([mems, inputs], axis=2)
        return jax.lax.stop_gradient(inputs[:, :, -self.config.memory_length :])


class Xlnet(nn.Module):
    """The two streams with the LM head: no transform, a bias per token."""

    config: XlnetConfig

    def setup(self) -> None:
        c = self.config
        self.encoder = XlnetEncoder(c)
        self.output_bias = self.param("output_bias", nn.initializers.zeros, (c.vocab_size,))
        if not c.tie_embeddings:
            self.decoder = Table(c.vocab_size, c.trunk.hidden_size, c.trunk)

    def __call__(
        self,
        tokens: jax.Array,
        segments: jax.Array,
        mask: Mask | jax.Array,
        mems: jax.Array | None = None,
        target_mapping: jax.Array | None = None,
        direction: jax.Array | None = None,
        reuse_length: int = 0,
        seeds: Seeds | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """`XlnetEncoder.streams`: hidden states to be decoded, and the memory."""
        output, mems = self.encoder.streams(
            tokens, segments, mask, mems, target_mapping, direction, reuse_length, seeds
        )
        if self.is_initializing():
            self.decode(output)  # its parameters too
        return output, mems

    def decode(self, x: jax.Array) -> jax.Array:
        """[..., hidden_size] -> logits [..., vocab_size]."""
        decoder = self.encoder if self.config.tie_embeddings else self.decoder
        return decoder.decode(x) + self.output_bias

    def empty_mems(self, batch: int) -> jax.Array | None:
        """Memory before any text: zeros, as the authors' code starts with."""
        c = self.config
        if not c.memory_length:
            return None
        return jnp.zeros((c.trunk.layers, batch, c.memory_length, c.trunk.hidden_size))


def _unidirectional(length: int, keys: int, same_length: bool) -> Mask:
    """Who may see whom from left to right, of [1, length, keys], the memory first.

    Transformer-XL's mask: position i sees the memory and 0..i; with `same_length` no
    longer the keys before i among the first `length` ones (`_create_mask`).
    """
    i, j = jnp.arange(length)[None], jnp.arange(keys)[None]
    seen = Pairs(i + keys - length, j, "at_most")
    if not same_length:
        return seen
    oldest = jnp.where(j < length, -j, -length)
    return seen & Pairs(-i, oldest, "at_most")
