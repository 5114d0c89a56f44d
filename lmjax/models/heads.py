"""Heads for fine-tuning an encoder: on whole sequences, tokens or marked tokens.

Encoders of all families have the same interface, so every head works with every encoder.
"""

from typing import Annotated, Any, Literal

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from lmjax.configuration import Interval, Rate
from lmjax.errors import ConfigError
from lmjax.models.network import Network, TextInputs
from lmjax.models.published import Published, Rules, dense
from lmjax.nn.dropout import Seeds, dropout
from lmjax.nn.layers import Dense
from lmjax.nn.trunk import TransformerConfig

BEFORE, AFTER = 48, 49  # dropout sites

TRANSFORMS = {
    "tanh": jnp.tanh,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "relu": jax.nn.relu,
}


Token = Literal["first", "last", "last_real"]
Classes = Annotated[int, Interval("[0, 2**20]")]


def one_token(hidden: jax.Array, real: jax.Array, token: Token) -> jax.Array:
    """Selects one token's state: [batch, length, hidden_size] -> [batch, hidden_size]."""
    if token == "last_real":
        last = jnp.argmax(jnp.where(real, jnp.arange(real.shape[1]), -1), axis=1)
        return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
    return hidden[:, 0 if token == "first" else -1]


class SequenceHead(nn.Module):
    """One token's hidden state -> (dense, activation ->) logits [batch, classes].

    BERT: first, tanh (its pooler); XLNet: last, tanh; ELECTRA: first, none, dropout before
    (`transformers` adds a dense gelu layer); DistilBERT: first, relu; GPT: last_real, none (GPT-1
    §3.3).

    Attributes:
      token: the token to use: at the first or last position, or the last real token.
      transform: activation of the dense layer before the output layer; '' = no dense layer.
      dropout_before: also apply dropout to the input of the dense layer.
      use_bias: whether the output layer has a bias.
      unit: (mean, scale); logits are mean + scale * output of the last layer.
    """

    config: TransformerConfig
    classes: Classes
    token: Token
    transform: Literal["", "tanh", "gelu", "relu"]
    dropout: Rate
    dropout_before: bool = False
    use_bias: bool = True
    unit: tuple[float, float] = (0.0, 1.0)

    @nn.compact
    def __call__(self, hidden: jax.Array, real: jax.Array, seeds: Seeds | None) -> jax.Array:
        """hidden: [batch, length, hidden_size]; real: [batch, length] bool, False at padding."""
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
    """Token logits [batch, length, classes]: of labels, or of the start and end of an answer."""

    config: TransformerConfig
    classes: Classes
    dropout: Rate

    @nn.compact
    def __call__(self, hidden: jax.Array, real: jax.Array, seeds: Seeds | None) -> jax.Array:
        del real
        x = dropout(hidden, self.dropout, seeds, AFTER)
        return Dense(self.classes, self.config.initializer(), name="output")(x)


class PoolingHead(nn.Module):
    """Text embeddings [batch, hidden_size]: one token's hidden state, or the mean.

    Attributes:
      token: the token to use; 'mean' averages over the real tokens, including special ones
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
    """The concatenated hidden states of two marked tokens -> logits [batch, classes].

    "Entity markers - entity start" of Baldini Soares et al. (2019, §3.2, figure 3f), with dropout
    before the output layer as in BERT.
    """

    config: TransformerConfig
    classes: Classes
    dropout: Rate

    @nn.compact
    def __call__(self, hidden: jax.Array, places: jax.Array, seeds: Seeds | None) -> jax.Array:
        """hidden: [batch, length, hidden_size]; places: [batch, 2] int, positions of the tokens."""
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
    "language_model",  # no head besides the token table
]


# Tasks for which `transformers` has a class, by the suffix of the class name.
CLASS_TASKS: dict[str, Task] = {
    "ForSequenceClassification": "sequence_classification",
    "ForNextSentencePrediction": "next_sentence",
    "ForMultipleChoice": "multiple_choice",
    "ForTokenClassification": "token_classification",
    "ForQuestionAnswering": "question_answering",
    "ForQuestionAnsweringSimple": "question_answering",
}
_NO_UNIT = (0.0, 1.0)


class Headed(Network):
    """An encoder with a head.

    Attributes:
      encoder: maps `TextInputs` and seeds to hidden states.
      head: maps hidden states to logits.
      task: purpose of the logits: one of `Task`, or a name chosen by the caller. For
        `multiple_choice` there is one logit [batch, 1] per choice. For `question_answering`,
        [..., 0] are logits of the start of the answer and [..., 1] of its end.
    """

    encoder: nn.Module
    head: nn.Module
    task: str

    @property
    def config(self) -> Any:
        """Config of the encoder."""
        encoder: Any = self.encoder
        return encoder.config

    @property
    def classes(self) -> int:
        """Number of classes of the head; 0 if it has none."""
        return getattr(self.head, "classes", 0)

    def __call__(
        self, inputs: TextInputs, seeds: Seeds | None = None, places: jax.Array | None = None
    ) -> jax.Array:
        """Returns the head's logits.

        Args:
          places: [batch, 2] int, positions of the two tokens that a `MarkedHead` reads.
        """
        return self.head(self.encoder(inputs, seeds), self._where(inputs, places), seeds)

    def with_tokens(self, inputs: TextInputs, seeds: Seeds | None = None) -> Any:
        """Returns the logits of the head and of the language model on the same hidden states."""
        encoder: Any = self.encoder
        hidden = encoder(inputs, seeds)
        return self.head(hidden, inputs.real, seeds), encoder.decode(hidden)

    def _where(self, inputs: TextInputs, places: jax.Array | None) -> jax.Array:
        """Returns the head's second input: `real`, or the positions of marked tokens."""
        if not isinstance(self.head, MarkedHead):
            return inputs.real
        if places is None and not self.is_initializing():
            raise ConfigError(
                "model: its head needs the positions of two marked tokens; call `predict` on rows"
                " with spans"
            )
        return jnp.zeros((inputs.tokens.shape[0], 2), jnp.int32) if places is None else places

    @nn.nowrap
    def published(self) -> Published | None:
        names = [name for name, task in CLASS_TASKS.items() if task == self.task]
        names = [name for name in names if self.config.published_has(name)]
        known = not isinstance(self.head, SequenceHead) or self.task in self.config.published_heads
        if not (names and known):
            return None
        return Published(self.config.published_prefix + names[0], self._rules())

    @nn.nowrap
    def _rules(self) -> Rules:
        yield from self.config.encoder_rules("encoder/")
        head = self.head
        if isinstance(head, SequenceHead):
            transform, output = self.config.published_heads[self.task]
            if head.transform:
                yield from dense(transform, "head/transform")
            yield from dense(output, "head/output", bias=head.use_bias)
        else:
            answers = self.task == "question_answering"
            yield from dense("qa_outputs" if answers else "classifier", "head/output")


def in_unit(network: Network, unit: tuple[float, float]) -> Network:
    """Scales the output of a network's head: mean + scale * output, unit = (mean, scale)."""
    if unit == _NO_UNIT:
        return network
    if not (isinstance(network, Headed) and isinstance(network.head, SequenceHead)):
        raise ConfigError("unit: only a SequenceHead supports it; leave it at (0, 1)")
    return network.clone(head=network.head.clone(unit=unit))


def without_unit(network: Network, params: Any) -> tuple[Network, Any]:
    """Folds the unit of a regression head into the parameters; the function is unchanged.

    If the head has no bias (GPT), the mean goes into the bias of the preceding norm.

    Raises:
      ConfigError: there is neither a head bias nor a preceding norm.
    """
    head: Any = network.head if isinstance(network, Headed) else None
    if not isinstance(head, SequenceHead) or head.unit == _NO_UNIT:
        return network, params
    mean, scale = head.unit
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    kernel = flat["head/output/kernel"] = np.asarray(flat["head/output/kernel"]) * scale
    norm = "encoder/stack/final_norm/bias"
    if head.use_bias:
        flat["head/output/bias"] = np.asarray(flat["head/output/bias"]) * scale + mean
    elif norm in flat and kernel.any():
        flat[norm] = np.asarray(flat[norm]) + mean * kernel[:, 0] / np.square(kernel).sum()
    else:
        raise ConfigError(
            "config.task.mean: neither a bias of the head nor a preceding norm can hold the mean;"
            " set it to 0.0"
        )
    plain = network.clone(head=head.clone(unit=_NO_UNIT))
    return plain, flax.traverse_util.unflatten_dict(flat, sep="/")
