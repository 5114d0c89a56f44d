"""What an objective is: the only thing the training loop knows of one."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lmjax.data.vocabulary import Vocabulary
from lmjax.errors import ConfigError
from lmjax.nn.dropout import Seeds

Batch = dict[str, jax.Array]
Sum = tuple[jax.Array, jax.Array]  # a sum and the count it is to be divided by


@flax.struct.dataclass
class Scored:
    """What a loss returns.

    Sums and counts, never means: they add up exactly over devices, micro-batches and
    steps, and are divided once, at the end.

    Attributes:
      terms: losses to minimise, in nats; the total is sum over terms of
        weight * sum / count. The first is the one that reports lead with.
      metrics: measured, not minimised. `unigram`, where present, is what token
        frequencies alone score on the targets of the first term.
      mems: memory for the next batch, or None.
    """

    terms: dict[str, Sum]
    metrics: dict[str, Sum]
    mems: Any = None


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Objective:
    """Base of all objectives: a frozen dataclass whose fields are its config.

    A subclass declares `model: SomeConfig` and its own settings, and implements `init`,
    `corrupt` and `loss`. A config names it by import path; nothing registers it, and it
    may live outside of this package.

    Attributes:
      vocabulary: what there is to know of the token ids.
    """

    vocabulary: Vocabulary
    model: Any

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each term of the loss; terms that are not named count 1."""
        return {}

    def init(self, key: jax.Array, batch: Batch) -> Any:
        """Parameters. `batch` is a corrupted batch, of which only the shapes matter."""
        raise NotImplementedError

    def init_mems(self, batch_size: int) -> Any:
        """Memory before the first batch, leading axes as `loss` takes it; None = none.

        Arrays are [layers, batch, ...]: axis 1 is the batch.
        """
        del batch_size
        return None

    def corrupt(self, key: jax.Array, example: Batch) -> Batch:
        """From one clean example (no batch axis) to what `loss` reads; vmapped by the step.

        `key` derives from (seed, step, index of the example) alone.
        """
        del key
        return example

    def loss(self, params: Any, batch: Batch, mems: Any, seeds: Seeds | None) -> Scored:
        """Scores a corrupted batch. `seeds` drive dropout; None evaluates."""
        raise NotImplementedError

    def forward_flops(self, length: int) -> float | None:
        """FLOPs of the matrix products of one forward pass of one example; None = unknown."""
        del length
        return None

    def check_length(self, length: int) -> None:
        """Refuses examples longer than the model's position table."""
        longest = getattr(self.model, "max_length", None)
        if longest is not None and length > longest:
            raise ConfigError(
                f"config.data.examples.length: {length} is longer than the position table,"
                f" config.model.max_length={longest}; shorten the one or raise the other"
            )


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """-log softmax(logits)[targets] in float32. logits: [..., classes] -> [...], nats."""
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def weighted_sum(values: jax.Array, weights: jax.Array) -> Sum:
    """The sum of `values` where `weights` say, and the sum of the weights."""
    weights = weights.astype(jnp.float32)
    return (values * weights).sum(), weights.sum()


def token_scores(
    name: str,
    logits: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    vocabulary: Vocabulary,
) -> tuple[dict[str, Sum], dict[str, Sum]]:
    """The loss term `name` of token predictions, with its accuracy and unigram score.

    logits: [..., vocab_size]; targets, weights: [...].
    """
    frequencies = jnp.asarray(np.asarray(vocabulary.log_frequency, np.float32))
    terms = {name: weighted_sum(cross_entropy(logits, targets), weights)}
    metrics = {
        f"{name}_accuracy": weighted_sum(jnp.argmax(logits, -1) == targets, weights),
        "unigram": weighted_sum(-frequencies[targets], weights),
    }
    return terms, metrics
