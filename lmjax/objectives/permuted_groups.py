"""Permutation language modelling by groups: several targets are predicted at once."""

import dataclasses

import jax
import jax.numpy as jnp

from lmjax.configuration import Size
from lmjax.objectives.permuted import PermutedLM


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class PermutedGroupsLM(PermutedLM):
    """XLNet's objective with a factorization over sets of targets in place of single ones.

    The targets of a part, in their factorization order, are divided into groups of `group_size`;
    the last may be smaller. log p(targets | context) is the sum over groups and over the tokens x
    of a group of log p(x | context, all earlier groups). The tokens of a group see neither
    themselves nor each other. With groups of one token this is eq. 3 of Yang et al. 2019; with a
    single group, all targets are independent given the context, as in masked LM.

    A model of this kind can sample several tokens in parallel in any order (`infill='any_order'` of
    `lmjax.generate`). Guo and Ermon 2025 ("Reviving any-subset autoregressive models") correct the
    independence of such samples, which is not implemented here.

    Attributes:
      group_size: targets of a group.
    """

    group_size: Size = 4

    def order(self, key: jax.Array, is_target: jax.Array) -> jax.Array:
        return in_groups(super().order(key, is_target), is_target, self.group_size)


def in_groups(order: jax.Array, is_target: jax.Array, group_size: int) -> jax.Array:
    """Moves each target to the place of the first one of its group.

    Args:
      order: [size] int, place of each position in the order.
      is_target: [size] bool; other positions keep their places.

    Returns:
      [size] int.
    """
    size = order.shape[0]
    by_place = jnp.sort(jnp.where(is_target, order, size))
    number = jnp.searchsorted(by_place, order)  # of earlier targets
    first = by_place[number // group_size * group_size]
    return jnp.where(is_target, first, order)
