"""The base class of objectives, which is all the training loop relies on."""

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
from lmjax.nn.dropout import Seeds
from lmjax.nn.layers import score_targets
from lmjax.nn.masks import Mask

# Arrays [batch, ...] by name: those of `lmjax.data.examples.source.Row` and those `corrupt` adds.
Batch = dict[str, jax.Array]
Sum = tuple[jax.Array, jax.Array]  # a sum, and the count to divide it by


@flax.struct.dataclass
class Scored:
    """The result of `Objective.loss`.

    It holds sums and counts, never means: they add up exactly over devices, micro-batches and
    steps, and are divided once at the end.

    Attributes:
      terms: losses to minimize, in nats; the total is the sum over terms of
        weight * sum / count.
      metrics: values that are reported but not minimized. `unigram`, if present, is the loss of
        predicting the targets of the headline term from token frequencies alone.
      mems: memory for the next batch, or None.
    """

    terms: dict[str, Sum]
    metrics: dict[str, Sum]
    mems: Any = None


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Objective:
    """Base of all objectives: a frozen dataclass whose fields are its config.

    A subclass declares `model: SomeConfig` and its own settings, and implements `network`,
    `inputs`, `corrupt` and `loss`. A config refers to it by import path; there is no registry, and
    the class may live outside this package.

    Attributes:
      default_model: class of the model's config if config.model has no `type`; None = the class
        with which the field `model` is annotated.
      headline: the term of the loss that reports show first.
      scores_every_token: whether the headline is -log p of the text, token by token, so that it
        can be reported in bits per byte.
      vocabulary: properties of the token ids.
      model: config of the model.
    """

    default_model: ClassVar[type[ModelConfig] | None] = None
    headline: ClassVar[str] = "loss"
    scores_every_token: ClassVar[bool] = False

    vocabulary: Vocabulary
    model: Any

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def weights(self) -> dict[str, float]:
        """Weights of the terms of the loss; unlisted terms have weight 1."""
        return {}

    def weight(self, term: str) -> float:
        """The weight of a term of the loss."""
        return self.weights.get(term, 1.0)

    @property
    def network(self) -> Network:
        """The network to train; `lmjax.load` returns it with its parameters."""
        raise ConfigError(
            f"objective: {type(self).__name__} has no property `network`, which is needed to open"
            " a run; define one"
        )

    def inputs(self, batch: Batch, mems: Any = None) -> tuple[Any, ...]:
        """Returns the network's arguments for a corrupted batch."""
        raise NotImplementedError

    def text_inputs(self, batch: Batch, mask: Mask) -> TextInputs:
        """Builds the `TextInputs` of a batch with an attention mask."""
        tokens, segment_ids = batch["tokens"], batch["segment_ids"]
        types, positions = batch["token_types"], batch["positions"]
        return TextInputs(tokens, types, positions, mask, segment_ids > 0, batch.get("starts"))

    def init(self, key: jax.Array, batch: Batch) -> Any:
        """Initializes the parameters. `batch` is a corrupted batch; only its shapes matter."""
        mems = self.init_mems(batch["tokens"].shape[0])
        return self.network.init(key, *self.inputs(batch, mems))["params"]

    def init_mems(self, batch_size: int) -> Any:
        """Returns the memory before the first batch, or None for models without memory.

        Arrays are [layers, batch, ...]: axis 1 is the batch axis, as `loss` expects.
        """
        del batch_size
        return None

    def corrupt(self, key: jax.Array, example: Batch) -> Batch:
        """Converts a clean example (no batch axis) to the input of `loss`; the step vmaps it.

        `key` derives only from (seed, step, index of the example).
        """
        del key
        return example

    def trainable(self, path: tuple[str, ...]) -> bool:
        """Whether the parameter at `path` is trained; the others never change."""
        del path
        return True

    def loss(self, params: Any, batch: Batch, mems: Any, seeds: Seeds | None) -> Scored:
        """Scores a corrupted batch. `seeds` drives dropout; None disables it (evaluation)."""
        raise NotImplementedError

    def forward_flops(self, length: int) -> float | None:
        """FLOPs of the matrix products of one forward pass for one example; None = unknown."""
        del length
        return None

    def check_length(self, length: int) -> None:
        """Raises ConfigError if examples are longer than the model's position table."""
        longest = getattr(self.model, "max_length", None)
        if longest is not None and length > longest:
            raise ConfigError(
                f"config.data.examples.length: {length} is longer than the position table,"
                f" config.model.max_length={longest}; reduce the former or raise the latter"
            )

    def check_rows(self, rows: int, devices: int) -> None:
        """Raises ConfigError if micro-batches of `rows` rows do not suit the objective.

        Args:
          rows: of a micro-batch, a multiple of `devices`.
          devices: over which the rows are split.
        """


def apply(
    network: nn.Module, params: Any, *inputs: Any, method: str | Callable[..., Any] | None = None
) -> Any:
    """Applies `network` to `inputs` with `params` as its only variables."""
    return network.apply({"params": params}, *inputs, method=method)


def weighted_sum(values: jax.Array, weights: jax.Array) -> Sum:
    """Returns the weighted sum of `values` and the sum of the weights."""
    weights = weights.astype(jnp.float32)
    return (values * weights).sum(), weights.sum()


def token_scores(
    name: str, logits: jax.Array, targets: jax.Array, weights: jax.Array, vocabulary: Vocabulary
) -> tuple[dict[str, Sum], dict[str, Sum]]:
    """Returns the loss term `name` of token predictions, and its accuracy and unigram score.

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
    """Cross entropy of `targets` under the token frequencies alone. targets, weights: [...]."""
    frequencies = jnp.asarray(np.asarray(vocabulary.log_frequency, np.float32))
    return weighted_sum(-frequencies[targets], weights)
