"""Dropout whose mask is a hash of (seed, step, example, site, index).

The backward pass recomputes the mask instead of storing it; a mask costs a few integer
operations that XLA fuses with the surrounding code. Every example has its own seed, so its
mask does not depend on how the batch is split over devices or micro-batches, nor on where a
run was interrupted.
"""

import functools
from typing import Self

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

_GOLDEN = np.uint32(0x9E3779B9)


@flax.struct.dataclass
class Seeds:
    """Seeds of the dropout masks of one step.

    Attributes:
      examples: [batch] uint32, one seed per example.
      step: [] uint32, the seed of masks shared by the whole batch.
    """

    examples: jax.Array
    step: jax.Array

    @classmethod
    def of(cls, example_keys: jax.Array, step_key: jax.Array) -> Self:
        """Derives seeds from typed PRNG keys; `example_keys` has shape [batch]."""
        bits = jax.vmap(lambda key: jax.random.bits(key, (), jnp.uint32))(example_keys)
        return cls(examples=bits, step=jax.random.bits(step_key, (), jnp.uint32))

    def fold(self, salt: jax.Array | int) -> Self:
        """Derives the seeds of a layer (by its index) or of a site in a layer (by a constant)."""
        salt = jnp.asarray(salt, jnp.uint32) * _GOLDEN + np.uint32(1)
        return type(self)(examples=_mix(self.examples + salt), step=_mix(self.step + salt))

    def of_parts(self, salt: int, count: int) -> Self:
        """Derives seeds of `count` parts of each example, in order: [batch * count]."""
        own = [self.fold(salt + part).examples for part in range(count)]
        return type(self)(examples=jnp.stack(own, axis=1).reshape(-1), step=self.step)


@flax.struct.dataclass
class Window:
    """Location of a slice in a larger array, so that slices get the dropout mask of the whole.

    Attributes:
      axis: the sliced axis; not the batch axis.
      first: [] index of the slice's first element along `axis`.
    """

    axis: int = flax.struct.field(pytree_node=False)
    first: jax.Array


def dropout(
    x: jax.Array, rate: float, seeds: Seeds | None, salt: int, window: Window | None = None
) -> jax.Array:
    """Zeroes each element of `x` with probability `rate`, scales the rest by 1/(1-rate).

    Args:
      x: [batch, ...] float.
      rate: probability of a zero, in [0, 1).
      seeds: None returns `x` unchanged (evaluation).
      salt: distinguishes this site from the others in its layer.
      window: location of `x` in a larger array; None if `x` is the whole array.
    """
    if seeds is None or rate == 0.0:
        return x
    return _dropout(x, seeds.fold(salt).examples, window, rate)


def shared_dropout(x: jax.Array, rate: float, seeds: Seeds | None, salt: int) -> jax.Array:
    """Applies `dropout` to an `x` without a batch axis: one mask for the whole batch."""
    if seeds is None or rate == 0.0:
        return x
    return _dropout(x[None], seeds.fold(salt).step[None], None, rate)[0]


# With jax.checkpoint the mask is not stored; the backward pass recomputes it.
@functools.partial(jax.checkpoint, static_argnums=3)
def _dropout(x: jax.Array, seeds: jax.Array, window: Window | None, rate: float) -> jax.Array:
    # The sliced axis is the slowest-varying one, so an element's index does not depend on the
    # size of that axis.
    axes = list(range(1, x.ndim))
    if window is not None:
        axes = [window.axis, *(axis for axis in axes if axis != window.axis)]
    index = jnp.zeros((1, *x.shape[1:]), jnp.uint32)
    stride = 1
    for axis in reversed(axes):
        here = jax.lax.broadcasted_iota(jnp.uint32, index.shape, axis)
        if window is not None and window.axis == axis:
            here = here + jnp.asarray(window.first, jnp.uint32)
        index = index + here * np.uint32(stride)
        stride = stride * x.shape[axis] % 2**32
    bits = _mix(_mix(index * _GOLDEN) ^ seeds.reshape(-1, *[1] * (x.ndim - 1)))
    keep = bits >= np.uint32(round(rate * 2**32))
    return jnp.where(keep, x * jnp.asarray(1.0 / (1.0 - rate), x.dtype), jnp.zeros((), x.dtype))


def _mix(h: jax.Array) -> jax.Array:
    """Bijective uint32 hash with low bias (C. Wellons' lowbias32 constants)."""
    h = (h ^ (h >> 16)) * np.uint32(0x7FEB352D)
    h = (h ^ (h >> 15)) * np.uint32(0x846CA68B)
    return h ^ (h >> 16)
