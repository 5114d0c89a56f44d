"""Dropout whose mask is a hash of (seed, step, example, site, index).

A mask is recomputed in the backward pass, never stored, and costs a few integer
operations that fuse into their neighbours. Because every example carries its own
seed, the mask of an example does not depend on how the batch is split over devices
or micro-batches, nor on where a run was interrupted.
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
    """What the dropout masks of one step derive from.

    Attributes:
      examples: [batch] uint32, one seed an example.
      step: [] uint32, for what the whole batch shares.
    """

    examples: jax.Array
    step: jax.Array

    @classmethod
    def of(cls, example_keys: jax.Array, step_key: jax.Array) -> Self:
        """Seeds from typed PRNG keys, `example_keys` of shape [batch]."""
        bits = jax.vmap(lambda key: jax.random.bits(key, (), jnp.uint32))(example_keys)
        return cls(examples=bits, step=jax.random.bits(step_key, (), jnp.uint32))

    def fold(self, salt: jax.Array | int) -> Self:
        """Seeds of a part: a layer by its index, a site within it by a constant."""
        salt = jnp.asarray(salt, jnp.uint32) * _GOLDEN + np.uint32(1)
        return type(self)(examples=_mix(self.examples + salt), step=_mix(self.step + salt))

    def of_parts(self, salt: int, count: int) -> Self:
        """Seeds of `count` parts of each example, one after the other: [batch * count]."""
        own = [self.fold(salt + part).examples for part in range(count)]
        return type(self)(examples=jnp.stack(own, axis=1).reshape(-1), step=self.step)


@flax.struct.dataclass
class Window:
    """Which part of an array is at hand, so that parts are dropped as the whole would be.

    Attributes:
      axis: along which the whole is cut; not the batch.
      first: [] index of the part's first element along it.
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
      seeds: None leaves `x` as it is (evaluation).
      salt: tells this site from the others of its layer.
      window: what part of a larger array `x` is; None: all of it.
    """
    if seeds is None or rate == 0.0:
        return x
    return _dropout(x, seeds.fold(salt).examples, window, rate)


def shared_dropout(x: jax.Array, rate: float, seeds: Seeds | None, salt: int) -> jax.Array:
    """`dropout` for `x` without a batch axis: one mask for the whole batch."""
    if seeds is None or rate == 0.0:
        return x
    return _dropout(x[None], seeds.fold(salt).step[None], None, rate)[0]


# Of a checkpoint nothing is stored: the backward pass computes the mask again.
@functools.partial(jax.checkpoint, static_argnums=3)
def _dropout(x: jax.Array, seeds: jax.Array, window: Window | None, rate: float) -> jax.Array:
    # The axis that is cut counts slowest: an element's index does not depend on how many
    # there are along it.
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
    """A bijective hash of uint32 with low bias (C. Wellons' lowbias32 constants)."""
    h = (h ^ (h >> 16)) * np.uint32(0x7FEB352D)
    h = (h ^ (h >> 15)) * np.uint32(0x846CA68B)
    return h ^ (h >> 16)
