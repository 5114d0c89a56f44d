"""GPT (Radford et al. 2018), GPT-2 (2019) and GPT-3 (Brown et al. 2020): causal decoders.

GPT-1 is a post-norm trunk, GPT-2 a pre-norm one with a final norm; GPT-3 is GPT-2 here
(its alternating sparse attention is left out: dense attention throughout).
"""

import dataclasses
from typing import Annotated

import flax.linen as nn
import jax

from lmjax.configuration import Interval, Size, VocabSize, check_ranges
from lmjax.nn.attention import Cache
from lmjax.nn.dropout import Seeds
from lmjax.nn.embeddings import Table, TextEmbeddings
from lmjax.nn.masks import Mask
from lmjax.nn.transformer import Stack
from lmjax.nn.trunk import TransformerConfig


@dataclasses.dataclass(frozen=True)
class GptConfig:
    """GPT's settings.

    Attributes:
      trunk: the Transformer.
      max_length: rows of the position table; no sequence may be longer.
      tie_embeddings: the output decodes with the token table.
      position_std: initial std of the position table (GPT-2's code: 0.01); 0 = the trunk's.
      vocab_size: rows of the token table; 0 = as many as the tokenizer has.
    """

    trunk: TransformerConfig
    max_length: Size = 1024
    position_std: Annotated[float, Interval("[0, 10]")] = 0.0
    tie_embeddings: bool = True
    vocab_size: VocabSize = 0

    def __post_init__(self) -> None:
        check_ranges(self)


class GptEncoder(nn.Module):
    """Embeddings and trunk: ids [batch, length] -> [batch, length, hidden_size]."""

    config: GptConfig

    def setup(self) -> None:
        c = self.config
        self.embeddings = TextEmbeddings(
            c.trunk,
            vocab_size=c.vocab_size,
            features=c.trunk.hidden_size,
            max_length=c.max_length,
            segment_types=0,
            norm=False,
            position_std=c.position_std,
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
        """The last hidden states; `segments` are there for the other encoders' sake."""
        del segments
        return self.extend(tokens, positions, mask, seeds)[0]

    def extend(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        mask: Mask | jax.Array,
        seeds: Seeds | None = None,
        cache: Cache | None = None,
        start: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """The last hidden states, and the cache with these tokens in it."""
        x = self.embeddings(tokens, tokens, positions, seeds)
        return self.stack(x, mask, seeds, cache, start)

    def decode(self, x: jax.Array) -> jax.Array:
        return self.embeddings.decode(x)


class Gpt(nn.Module):
    """The decoder with its output: ids [batch, length] -> logits [batch, length, vocab_size]."""

    config: GptConfig

    def setup(self) -> None:
        c = self.config
        self.encoder = GptEncoder(c)
        if not c.tie_embeddings:
            self.decoder = Table(c.vocab_size, c.trunk.hidden_size, c.trunk)

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        mask: Mask | jax.Array,
        seeds: Seeds | None = None,
    ) -> jax.Array:
        """mask: boolean, broadcasts to [batch, length, length]; the caller makes it causal."""
        return self.decode(self.hidden(tokens, positions, mask, seeds))

    def hidden(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        mask: Mask | jax.Array,
        seeds: Seeds | None = None,
    ) -> jax.Array:
        """The last hidden states, [batch, length, hidden_size]."""
        return self.encoder.extend(tokens, positions, mask, seeds)[0]

    def extend(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        mask: Mask | jax.Array,
        cache: Cache,
        start: jax.Array,
    ) -> tuple[jax.Array, Cache]:
        """Goes on with a text whose earlier tokens are in the cache.

        Args:
          tokens, positions: [batch, length] int; positions count from the first real token.
          mask: [batch, length, slots] bool: no later slot, none of padding, none unused.
          start: [] int, the first slot that these tokens take.

        Returns:
          logits [batch, length, vocab_size] and the cache with these tokens in it.
        """
        hidden, written = self.encoder.extend(tokens, positions, mask, None, cache, start)
        assert written is not None
        return self.decode(hidden), written

    def decode(self, x: jax.Array) -> jax.Array:
        """[..., hidden_size] -> logits [..., vocab_size]."""
        return (self.encoder if self.config.tie_embeddings else self.decoder).decode(x)
