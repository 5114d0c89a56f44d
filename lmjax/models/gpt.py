"""GPT (Radford et al. 2018), GPT-2 (2019) and GPT-3 (Brown et al. 2020): causal decoders.

GPT-1 is a post-norm trunk, GPT-2 a pre-norm one with a final norm; GPT-3 is GPT-2 here
(its alternating sparse attention is left out: dense attention throughout).
"""

import dataclasses

import flax.linen as nn
import jax

from lmjax.nn.dropout import Seeds
from lmjax.nn.embeddings import TextEmbeddings
from lmjax.nn.transformer import Stack
from lmjax.nn.trunk import TransformerConfig


@dataclasses.dataclass(frozen=True)
class GptConfig:
    """GPT's settings.

    Attributes:
      trunk: the Transformer.
      max_length: rows of the position table; no sequence may be longer.
      position_std: initial std of the position table (GPT-2's code: 0.01); 0 = the trunk's.
      vocab_size: rows of the token table; 0 = as many as the tokenizer has.
    """

    trunk: TransformerConfig
    max_length: int = 1024
    position_std: float = 0.0
    vocab_size: int = 0


class Gpt(nn.Module):
    """Decoder with tied output: ids [batch, length] -> logits [batch, length, vocab_size]."""

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
        self, tokens: jax.Array, positions: jax.Array, mask: jax.Array, seeds: Seeds | None = None
    ) -> jax.Array:
        """mask: boolean, broadcasts to [batch, length, length]; the caller makes it causal."""
        return self.decode(self.hidden(tokens, positions, mask, seeds))

    def hidden(
        self, tokens: jax.Array, positions: jax.Array, mask: jax.Array, seeds: Seeds | None = None
    ) -> jax.Array:
        """The last hidden states, [batch, length, hidden_size]."""
        return self.stack(self.embeddings(tokens, tokens, positions, seeds), mask, seeds)

    def decode(self, x: jax.Array) -> jax.Array:
        """[..., hidden_size] -> logits [..., vocab_size]."""
        return self.embeddings.decode(x)
