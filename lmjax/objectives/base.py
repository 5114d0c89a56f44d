"""What an objective is: the only thing the training loop knows of one."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lmjax.configuration import check_ranges
from lmjax.data.vocabulary import Vocabulary
from lmjax.errors import ConfigError
from lmjax.models.family import ModelConfig
from lmjax.models.network import Network, TextInputs
from lmjax.nn.cross_entropy import score_targets
from lmjax.nn.dropout import Seeds
from lmjax.nn.masks import Mask

# Arrays by name, [batch, ...]: those of `lmjax.data.examples.source.Row`, and what `corrupt` adds.
Batch = dict[str, jax.Array]
Sum = tuple[jax.Array, jax.Array]  # a sum and the count it is to be divided by


@flax.struct.dataclass
class Scored:
    """What a loss returns.

    Sums and counts, never means: they add up exactly over devices, micro-batches and
    steps, and are divided once, at the end.

    Attributes:
      terms: losses to minimise, in nats; the total is sum over terms of
        weight * sum / count.
      metrics: measured, not minimised. `unigram`, where present, is what token
        frequencies alone score on the targets of the objective's headline term.
      mems: memory for the next batch, or None.
    """

    terms: dict[str, Sum]
    metrics: dict[str, Sum]
    mems: Any = None


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Objective:
    """Base of all objectives: a frozen dataclass whose fields are its config.

    A subclass declares `model: SomeConfig` and its own settings, and implements `network`,
    `inputs`, `corrupt` and `loss`. A config names it by import path; nothing registers it, and it
    may live outside of this package.

    Attributes:
      family: of the model, where config.model names no type; None takes the class that the
        field `model` is annotated with.
      headline: the term of the loss that reports lead with.
      scores_every_token: the headline is -log p of the text, token by token, so that it
        can be told in bits per byte.
      vocabulary: what there is to know of the token ids.
    """

    family: ClassVar[type[ModelConfig] | None] = None
    headline: ClassVar[str] = "loss"
    scores_every_token: ClassVar[bool] = False

    vocabulary: Vocabulary
    model: Any

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each term of the loss; terms that are not named count 1."""
        return {}

    @property
    def network(self) -> Network:
        """What is trained; `lmjax.load` gives it with its parameters."""
        raise ConfigError(
            f"objective: {type(self).__name__} has no property `network`, which a run is opened"
            " with; give it one"
        )

    def inputs(self, batch: Batch, mems: Any = None) -> tuple[Any, ...]:
        """The network's arguments for a corrupted batch."""
        raise NotImplementedError

    def text_inputs(self, batch: Batch, mask: Mask) -> TextInputs:
        """The arrays of a batch that a network reads, under an attention mask."""
        tokens, segment_ids = batch["tokens"], batch["segment_ids"]
        types, positions = batch["token_types"], batch["positions"]
        return TextInputs(tokens, types, positions, mask, segment_ids > 0)

    def init(self, key: jax.Array, batch: Batch) -> Any:
        """Parameters. `batch` is a corrupted batch, of which only the shapes matter."""
        mems = self.init_mems(batch["tokens"].shape[0])
        return self.network.init(key, *self.inputs(batch, mems))["params"]

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


def apply(
    network: nn.Module, params: Any, *inputs: Any, method: str | Callable[..., Any] | None = None
) -> Any:
    """What `network` makes of `inputs`; nothing but parameters goes in beside them."""
    return network.apply({"params": params}, *inputs, method=method)


def weighted_sum(values: jax.Array, weights: jax.Array) -> Sum:
    """The sum of `values` where `weights` say, and the sum of the weights."""
    weights = weights.astype(jnp.float32)
    return (values * weights).sum(), weights.sum()


def token_scores(
    name: str, logits: jax.Array, targets: jax.Array, weights: jax.Array, vocabulary: Vocabulary
) -> tuple[dict[str, Sum], dict[str, Sum]]:
    """The loss term `name` of token predictions, with its accuracy and unigram score.

    logits: [..., vocab_size]; targets, weights: [...].
    """
    losses, hits = score_targets(logits, targets)
    terms = {name: weighted_sum(losses, weights)}
    metrics = {
        f"{name}_accuracy": weighted_sum(hits, weights),
        "unigram": unigram_score(targets, weights, vocabulary),
    }
    return terms, metrics


def unigram_score(targets: jax.Array, weights: jax.Array, vocabulary: Vocabulary) -> Sum:
    """What token frequencies alone score. targets, weights: [...]."""
    frequencies = jnp.asarray(np.asarray(vocabulary.log_frequency, np.float32))
    return weighted_sum(-frequencies[targets], weights)
