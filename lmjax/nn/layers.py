"""Basic layers: dense, layer normalization, activations, cross entropy, sampling."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from lmjax.nn.partition import platform, sequence_parts

Activation = Literal["gelu", "gelu_tanh", "relu", "silu"]
Initializer = Callable[..., Any]

_NORMALIZER = "cross_entropy_normalizer"

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    # The exact error-function form: ELECTRA, BERT's first release and Hugging Face's "gelu".
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    # The tanh approximation: Google's BERT since 2019-02, XLNet and GPT-2.
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


def contract(spec: str, a: jax.Array, b: jax.Array, dtype: Any = jnp.float32) -> jax.Array:
    """`einsum(spec, a, b)` with operands rounded to `dtype`, accumulated in float32.

    The result is float32, also in the backward pass. Accelerators (and XLA's CPU kernels) run
    products of bfloat16 operands with a float32 result at full speed, while the residual
    stream, softmax, normalization and loss stay in float32.

    Args:
      spec: two-operand einsum. Every index of an operand must also occur in the other operand
        or in the result.
    """
    if dtype == jnp.float32:
        return jnp.einsum(spec, a, b)
    return _contract(spec, dtype, a, b)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _contract(spec: str, dtype: Any, a: jax.Array, b: jax.Array) -> jax.Array:
    operands, result = spec.split("->")
    left, right = operands.split(",")
    batch = [i for i in left if i in right and i in result]
    summed = [i for i in left if i in right and i not in result]
    if batch and left.startswith("".join(batch + summed)):
        left, right, a, b = right, left, b, a
    a, b = a.astype(dtype), b.astype(dtype)
    # XLA's CPU backend has 16-bit kernels that sum over the last axis of the left operand. It
    # transposes operands to this layout, except that it folds a swap of two axes into the product
    # and then computes in float32 or fails. The operand order above and the barriers here, which
    # stop surrounding transposes from being folded in, avoid that.
    on_cpu = platform() == "cpu"
    if on_cpu:
        a, b = jax.lax.optimization_barrier((a, b))
    axes = [
        [names.index(i) for i in shared] for shared in (summed, batch) for names in (left, right)
    ]
    y = jax.lax.dot_general(
        a, b, ((axes[0], axes[1]), (axes[2], axes[3])), preferred_element_type=jnp.float32
    )
    if on_cpu:
        y = jax.lax.optimization_barrier(y)
    order = batch + [i for i in left if i not in right] + [i for i in right if i not in left]
    return y.transpose([order.index(i) for i in result])


def _contract_forward(spec: str, dtype: Any, a: jax.Array, b: jax.Array) -> tuple[jax.Array, Any]:
    return _contract(spec, dtype, a, b), (a.astype(dtype), b.astype(dtype))


def _contract_backward(spec: str, dtype: Any, saved: Any, g: jax.Array) -> tuple[Any, Any]:
    a, b = saved
    operands, result = spec.split("->")
    left, right = operands.split(",")
    return (
        _contract(f"{result},{right}->{left}", dtype, g, b),
        _contract(f"{left},{result}->{right}", dtype, a, g),
    )


_contract.defvjp(_contract_forward, _contract_backward)


def dense(x: jax.Array, kernel: jax.Array, dtype: Any = jnp.float32) -> jax.Array:
    """`x @ kernel` over the last axis. x: [..., in], kernel: [in, out] -> [..., out].

    In float32, all leading axes are merged into one: XLA's CPU backend computes the weight
    gradient of a two-dimensional product two to three times as fast. In 16 bits, its kernels
    support the gradient only if rows and positions are separate axes. A length that is split
    over devices cannot be merged with the rows either.
    """
    if x.ndim == 3 and (sequence_parts() > 1 or dtype != jnp.float32):
        return contract("bli,io->blo", x, kernel, dtype)
    y = contract("ni,io->no", x.reshape(-1, x.shape[-1]), kernel, dtype)
    return y.reshape(*x.shape[:-1], kernel.shape[-1])


class Dense(nn.Module):
    """Affine transformation of the last axis: [..., in] -> [..., features]."""

    features: int
    initializer: Initializer
    use_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.initializer, (x.shape[-1], self.features), jnp.float32)
        y = dense(x, kernel, self.dtype)
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return y


class LayerNorm(nn.Module):
    """Layer normalization of the last axis in float32, with the biased variance.

    (x - mean) / sqrt(var + epsilon) * scale + bias; Ba et al. 2016. The variance is
    computed in two passes, because E[x^2] - E[x]^2 cancels badly.
    """

    epsilon: float
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        x = x.astype(jnp.float32)
        deviation = x - x.mean(-1, keepdims=True)
        variance = jnp.square(deviation).mean(-1, keepdims=True)
        y = deviation * jax.lax.rsqrt(variance + self.epsilon) * scale
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        return y


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + epsilon) * scale over the last axis, in float32.

    Zhang and Sennrich 2019, "Root mean square layer normalization", eq. 4.
    """

    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        x = x.astype(jnp.float32)
        return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.epsilon) * scale


def truncated_normal(stddev: float) -> Initializer:
    """Normal truncated at two standard deviations, as in TensorFlow (actual std 0.8796 stddev)."""
    return nn.initializers.truncated_normal(stddev)


def embedding_lookup(table: jax.Array, ids: jax.Array) -> jax.Array:
    """Looks up `ids` [...] in `table` [rows, features] -> [..., features].

    Ids outside the table give NaN instead of being clamped, so that a vocabulary that does not
    match the model cannot train silently (reference: BERT's README).
    """
    return jnp.take(table, ids, axis=0, mode="fill", fill_value=np.nan)


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """-log softmax(logits)[targets] in float32. logits: [..., classes] -> [...], nats."""
    return score_targets(logits, targets)[0]


# Besides the logits, only the normalizer is saved for the gradient. The logits are by far the
# largest array of a step, and saving the probabilities would add a second one of that size.
@functools.partial(
    jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names(_NORMALIZER)
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
    log_z = checkpoint_name(log_z, _NORMALIZER)
    classes = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1)
    difference = jnp.exp(logits - log_z[..., None]) - (classes == targets[..., None])
    change = (difference * tangents[0]).sum(-1)
    return (losses, hits), (change, np.zeros(hits.shape, jax.dtypes.float0))


def sample_categorical(key: jax.Array, logits: jax.Array) -> jax.Array:
    """Samples a class from softmax(logits): [..., classes] -> [...] int32.

    Inverts the cumulative distribution at one uniform number per sample. `jax.random.categorical`
    draws a number per class instead, which takes longer than the softmax itself (on a CPU about 30
    times as long for 30,000 classes). Classes with -inf are never sampled.
    """
    logits = jax.lax.stop_gradient(logits).astype(jnp.float32)
    classes, width = logits.shape[-1], 256  # the sum of a block, then the sum within it
    largest = logits.max(-1)
    lead = (1,) * largest.ndim
    blocks = jax.lax.reduce_window(
        jnp.exp(logits - largest[..., None]),
        0.0,
        jax.lax.add,
        (*lead, width),
        (*lead, width),
        (*[(0, 0)] * largest.ndim, (0, -classes % width)),
    )
    ends = jnp.cumsum(blocks, -1)
    uniform = jax.random.uniform(key, largest.shape)
    block, rest = _first_above(ends, uniform * ends[..., -1])
    index = block[..., None] * width + jnp.arange(width)
    inside = jnp.take_along_axis(logits, jnp.minimum(index, classes - 1), -1)
    weights = jnp.where(index < classes, jnp.exp(inside - largest[..., None]), 0.0)
    return (block * width + _first_above(jnp.cumsum(weights, -1), rest)[0]).astype(jnp.int32)


def _first_above(ends: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the first index where ends > value, and `value` minus the end before it.

    ends: [..., n], not decreasing; value: [...]. A value that rounding has put at the last end or
    beyond counts as just below it.
    """
    value = jnp.minimum(value, jnp.nextafter(ends[..., -1], jnp.zeros(())))
    index = (ends <= value[..., None]).sum(-1)
    before = jnp.take_along_axis(ends, jnp.maximum(index - 1, 0)[..., None], -1)[..., 0]
    return index, value - jnp.where(index > 0, before, 0.0)
