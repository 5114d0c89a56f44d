"""XLNet (Yang et al. 2019): two-stream attention over a Transformer-XL memory."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.errors import ConfigError
from lmjax.nn.dropout import Seeds, dropout, shared_dropout
from lmjax.nn.embeddings import Table
from lmjax.nn.masks import content, with_memory
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
      vocab_size: rows of the token table; 0 = as many as the tokenizer has.
    """

    trunk: TransformerConfig
    memory_length: int = 0
    clamp_length: int = 0
    vocab_size: int = 0

    def __post_init__(self) -> None:
        if self.trunk.norm != "post":
            raise ConfigError("trunk.norm: XLNet is defined with 'post' norm only")
        if self.memory_length < 0 or self.clamp_length < 0:
            raise ConfigError("memory_length: lengths must not be negative")
        if self.trunk.hidden_size % 2:
            raise ConfigError("trunk.hidden_size: must be even for sinusoidal distances")


class Xlnet(nn.Module):
    """The two streams with the tied LM head (no transform, a bias per token).

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
        self.output_bias = self.param("output_bias", nn.initializers.zeros, (c.vocab_size,))

    def __call__(
        self,
        tokens: jax.Array,
        segments: jax.Array,
        mask: jax.Array,
        mems: jax.Array | None = None,
        target_mapping: jax.Array | None = None,
        direction: jax.Array | None = None,
        reuse_length: int = 0,
        seeds: Seeds | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """One segment.

        Args:
          tokens, segments: [batch, length] int; segments are compared for equality only.
          mask: [batch, length, length] bool, who may see whom; nobody need see itself:
            the content stream always does, the query stream does as the mask says.
          mems: [layers, batch, memory_length, hidden_size], inputs of each layer for
            earlier text, seen by all; None without memory.
          target_mapping: [batch, num_predict] int, the positions to predict, whose own
            tokens the query stream does not see; None: no query stream, all positions
            are read from the content stream (fine-tuning).
          direction: [batch] int, +1 or -1 where the text is reversed; None = all +1.
          reuse_length: how many of this segment's states enter the memory (reuse_len);
            0 = all.

        Returns:
          hidden states [batch, num_predict or length, hidden_size] after dropout, and
          the memory for the next segment, behind a stop_gradient.
        """
        trunk = self.config.trunk
        batch, length = tokens.shape
        memory_length = 0 if mems is None else mems.shape[2]
        keys = memory_length + length

        key_segments = jnp.pad(segments, ((0, 0), (memory_length, 0)))
        differs = segments[:, :, None] != key_segments[:, None, :]
        mask = jnp.broadcast_to(mask, (batch, length, length))
        context = RelativeContext(
            encoding=self._encoding(length, keys, direction is not None, seeds),
            direction=None if direction is None else (direction < 0).astype(jnp.int32),
            content_mask=with_memory(content(mask), memory_length),
            content_differs=differs,
        )
        h = dropout(self.token(tokens), trunk.dropout, seeds, EMBEDDING)
        g = None
        if target_mapping is not None:
            rows = target_mapping[..., None]
            context = dataclasses.replace(
                context,
                query_mask=with_memory(jnp.take_along_axis(mask, rows, axis=1), memory_length),
                query_differs=jnp.take_along_axis(differs, rows, axis=1),
                target_mapping=target_mapping,
            )
            g = jnp.broadcast_to(
                self.mask_embedding, (*target_mapping.shape, self.mask_embedding.shape[-1])
            )
            g_seeds = None if seeds is None else seeds.fold(QUERY_STREAM)
            g = dropout(g, trunk.dropout, g_seeds, EMBEDDING)

        (h, g), inputs = self.layers((h, g), mems, context, seeds)
        output = dropout(h if g is None else g, trunk.dropout, seeds, FINAL)
        return output, self._new_mems(mems, inputs, reuse_length)

    def decode(self, x: jax.Array) -> jax.Array:
        """[..., hidden_size] -> logits [..., vocab_size]."""
        return self.token.decode(x) + self.output_bias

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

    def empty_mems(self, batch: int) -> jax.Array | None:
        """Memory before any text: zeros, as the authors' code starts with."""
        c = self.config
        if not c.memory_length:
            return None
        return jnp.zeros((c.trunk.layers, batch, c.memory_length, c.trunk.hidden_size))
