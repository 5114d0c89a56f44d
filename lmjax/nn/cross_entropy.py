"""Float32 cross entropy that saves the logits and one number per target for the backward pass."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

_NORMALISER = "cross_entropy_normaliser"


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """-log softmax(logits)[targets] in float32. logits: [..., classes] -> [...], nats."""
    return score_targets(logits, targets)[0]


# Besides the logits, only the normalizer is saved for the gradient. The logits are by far the
# largest array of a step, and saving the probabilities would add a second one of that size.
@functools.partial(
    jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names(_NORMALISER)
)
def score_targets(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the cross entropy and whether no class scores higher than the target.

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
    """Returns losses, hits and the log of the softmax denominator."""
    largest = logits.max(-1)
    log_z = largest + jnp.log(jnp.exp(logits - largest[..., None]).sum(-1))
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return log_z - chosen, chosen >= largest, log_z


@_score.defjvp
def _score_jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
    """Computes the gradient, softmax - one-hot, in one pass over the logits."""
    logits, targets = primals
    losses, hits, log_z = _score_parts(logits, targets)
    log_z = checkpoint_name(log_z, _NORMALISER)
    classes = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1)
    difference = jnp.exp(logits - log_z[..., None]) - (classes == targets[..., None])
    change = (difference * tangents[0]).sum(-1)
    return (losses, hits), (change, np.zeros(hits.shape, jax.dtypes.float0))
