"""What fine-tuning puts on an encoder: a head for whole sequences, a head for tokens.

Encoders of all families are called alike, so that any head fits on any of them.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.nn.dropout import Seeds, dropout
from lmjax.nn.layers import Dense
from lmjax.nn.masks import Mask
from lmjax.nn.trunk import TransformerConfig

BEFORE, AFTER = 48, 49  # dropout sites

TRANSFORMS = {"tanh": jnp.tanh, "gelu": lambda x: jax.nn.gelu(x, approximate=False)}


Token = Literal["first", "last", "last_real"]


def one_token(hidden: jax.Array, real: jax.Array, token: Token) -> jax.Array:
    """A hidden state of each row: [batch, length, hidden_size] -> [batch, hidden_size]."""
    if token == "last_real":
        last = jnp.argmax(jnp.where(real, jnp.arange(real.shape[1]), -1), axis=1)
        return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
    return hidden[:, 0 if token == "first" else -1]


class SequenceHead(nn.Module):
    """One token's hidden state -> (dense, activation ->) logits [batch, classes].

    BERT: first, tanh (its pooler); XLNet: last, tanh; ELECTRA: first, none, dropout before
    (`transformers` adds a dense gelu layer); GPT: last_real, none (GPT-1 §3.3).

    Attributes:
      token: which hidden state: the first, the last position, or the last real token.
      transform: activation of the dense layer in between; '' = no such layer.
      dropout_before: drop out the hidden state too, not only what the last layer reads.
      use_bias: of the last layer.
      unit: (mean, scale); logits are mean + scale * those of the last layer.
    """

    config: TransformerConfig
    classes: int
    token: Token
    transform: Literal["", "tanh", "gelu"]
    dropout: float
    dropout_before: bool = False
    use_bias: bool = True
    unit: tuple[float, float] = (0.0, 1.0)

    @nn.compact
    def __call__(self, hidden: jax.Array, real: jax.Array, seeds: Seeds | None) -> jax.Array:
        """hidden: [batch, length, hidden_size]; real: [batch, length] bool, not padding."""
        c = self.config
        x = one_token(hidden, real, self.token)
        if self.transform:
            if self.dropout_before:
                x = dropout(x, self.dropout, seeds, BEFORE)
            dense = Dense(c.hidden_size, c.initializer(), dtype=c.compute_dtype, name="transform")
            x = TRANSFORMS[self.transform](dense(x))
        x = dropout(x, self.dropout, seeds, AFTER)
        output = Dense(self.classes, c.initializer(), use_bias=self.use_bias, name="output")
        mean, scale = self.unit
        return mean + scale * output(x) if self.unit != (0.0, 1.0) else output(x)


class TokenHead(nn.Module):
    """Logits of each token [batch, length, classes]: labels, or start and end of an answer."""

    config: TransformerConfig
    classes: int
    dropout: float

    @nn.compact
    def __call__(self, hidden: jax.Array, real: jax.Array, seeds: Seeds | None) -> jax.Array:
        del real
        x = dropout(hidden, self.dropout, seeds, AFTER)
        return Dense(self.classes, self.config.initializer(), name="output")(x)


class PoolingHead(nn.Module):
    """An embedding of each text, [batch, hidden_size]: one state, or the mean of all.

    Attributes:
      token: which state; 'mean' is that of the real tokens, special ones included
        (Reimers and Gurevych 2019, §3).
    """

    token: Token | Literal["mean"]

    @nn.compact
    def __call__(self, hidden: jax.Array, real: jax.Array, seeds: Seeds | None) -> jax.Array:
        del seeds
        if self.token != "mean":
            return one_token(hidden, real, self.token)
        weights = real.astype(hidden.dtype)[:, :, None]
        return (hidden * weights).sum(1) / jnp.maximum(weights.sum(1), 1)


class MarkedHead(nn.Module):
    """The hidden states of two marked tokens, one behind the other -> logits [batch, classes].

    "Entity markers - entity start" of Baldini Soares et al. (2019, §3.2, figure 3f), dropout
    before the classes as in BERT.
    """

    config: TransformerConfig
    classes: int
    dropout: float

    @nn.compact
    def __call__(self, hidden: jax.Array, places: jax.Array, seeds: Seeds | None) -> jax.Array:
        """hidden: [batch, length, hidden_size]; places: [batch, 2] int, of the two tokens."""
        x = jnp.take_along_axis(hidden, places[:, :, None], axis=1)
        x = dropout(x.reshape(x.shape[0], -1), self.dropout, seeds, AFTER)
        return Dense(self.classes, self.config.initializer(), name="output")(x)


Task = Literal[
    "sequence_classification",
    "next_sentence",
    "multiple_choice",
    "token_classification",
    "question_answering",
    "relation_classification",
    "mean_embedding",
    "token_embedding",
    "language_model",  # no head but the token table
]


class Headed(nn.Module):
    """An encoder and a head on it.

    Attributes:
      task: what the logits are for. Of `multiple_choice`, one logit [batch, 1] a choice;
        of `question_answering`, [..., 0] where the answer starts and [..., 1] where it ends.
    """

    encoder: nn.Module
    head: nn.Module
    task: Task

    def __call__(
        self,
        tokens: jax.Array,
        segments: jax.Array,
        positions: jax.Array,
        mask: Mask | jax.Array,
        real: jax.Array,
        seeds: Seeds | None = None,
    ) -> jax.Array:
        """The head's logits. real: [batch, length] bool, not padding."""
        return self.head(self.encoder(tokens, segments, positions, mask, seeds), real, seeds)
