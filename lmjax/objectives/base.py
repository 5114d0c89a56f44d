"""What an objective is: the only thing the training loop knows of one."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from lmjax.configuration import check_ranges
from lmjax.data.vocabulary import Vocabulary
from lmjax.errors import ConfigError
from lmjax.nn.dropout import Seeds

Batch = dict[str, jax.Array]
Sum = tuple[jax.Array, jax.Array]  # a sum and the count it is to be divided by
_NORMALISER = "cross_entropy_normaliser"


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

    A subclass declares `model: SomeConfig` and its own settings, and implements `init`,
    `corrupt` and `loss`. A config names it by import path; nothing registers it, and it
    may live outside of this package.

    Attributes:
      headline: the term of the loss that reports lead with.
      scores_every_token: the headline is -log p of the text, token by token, so that it
        can be told in bits per byte.
      vocabulary: what there is to know of the token ids.
    """

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


def apply(
    network: nn.Module, params: Any, *inputs: Any, method: str | Callable[..., Any] | None = None
) -> Any:
    """What `network` makes of `inputs`; nothing but parameters goes in beside them."""
    return network.apply({"params": params}, *inputs, method=method)


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """-log softmax(logits)[targets] in float32. logits: [..., classes] -> [...], nats."""
    return score_targets(logits, targets)[0]


# Of all that the gradient needs, logits apart, only the normaliser is kept: the probabilities
# would be a second array of the size of the logits, which are by far the largest of a step.
@functools.partial(
    jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names(_NORMALISER)
)
def score_targets(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cross entropy, and whether no class scores higher than the target.

    Args:
      logits: [..., classes] float; targets: [...] int.

    Returns:
      [...] float32 in nats, and [...] bool.
    """
    return _score(logits.astype(jnp.float32), targets)


@jax.custom_jvp
def _score(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _score_parts(logits, targets)[:2]


def _score_parts(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Losses, hits, and the logarithm of the softmax's denominator."""
    largest = logits.max(-1)
    log_z = largest + jnp.log(jnp.exp(logits - largest[..., None]).sum(-1))
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return log_z - chosen, chosen >= largest, log_z


@_score.defjvp
def _score_jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
    """The gradient is softmax - one-hot, written in one pass over the logits."""
    logits, targets = primals
    losses, hits, log_z = _score_parts(logits, targets)
    log_z = checkpoint_name(log_z, _NORMALISER)
    classes = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1)
    difference = jnp.exp(logits - log_z[..., None]) - (classes == targets[..., None])
    change = (difference * tangents[0]).sum(-1)
    return (losses, hits), (change, np.zeros(hits.shape, jax.dtypes.float0))


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
