"""Attention masks that are combined lazily.

A `Mask` is True where a query may attend to a key. It stores a few numbers per token and is
materialized only for a range of queries at a time, so that chunked attention needs memory linear
in the length. Masks combine with `&` and `|`, also with boolean arrays:
`causal(length) & same_document(documents)`.
"""

import abc
from typing import Literal

import flax.struct
import jax
import jax.numpy as jnp


class Mask(abc.ABC):
    """A boolean mask [batch, queries, keys]; the first two axes may be 1 and then broadcast."""

    @abc.abstractmethod
    def rows(self, first: jax.Array | int, count: int) -> jax.Array:
        """Materializes queries first..first + count. Rows beyond the last query are arbitrary."""

    @abc.abstractmethod
    def take(self, positions: jax.Array) -> "Mask":
        """Returns the mask of the queries at `positions` [batch, n]."""

    @abc.abstractmethod
    def dense(self) -> jax.Array:
        """Materializes all queries."""

    def __and__(self, other: "Mask | jax.Array") -> "Mask":
        return Combined(self, as_mask(other), "and")

    def __or__(self, other: "Mask | jax.Array") -> "Mask":
        return Combined(self, as_mask(other), "or")

    __rand__, __ror__ = __and__, __or__


@flax.struct.dataclass
class Pairs(Mask):
    """A comparison of one number per query with one number per key.

    Attributes:
      query: [batch or 1, queries or 1].
      key: [batch or 1, keys].
      relation: how the key's number must compare with the query's.
      name: identifies a mask that kernels implement natively, if its queries are all positions;
        '' for other masks.
    """

    query: jax.Array
    key: jax.Array
    relation: Literal["equal", "below", "at_most"] = flax.struct.field(pytree_node=False)
    name: Literal["", "causal", "documents"] = flax.struct.field(pytree_node=False, default="")

    def rows(self, first: jax.Array | int, count: int) -> jax.Array:
        return self.replace(query=_rows(self.query, first, count)).dense()  # type: ignore[attr-defined]

    def take(self, positions: jax.Array) -> Mask:
        return self.replace(query=_taken(self.query, positions), name="")  # type: ignore[attr-defined]

    def dense(self) -> jax.Array:
        query, key = self.query[:, :, None], self.key[:, None, :]
        if self.relation == "equal":
            return key == query
        return key < query if self.relation == "below" else key <= query


@flax.struct.dataclass
class Dense(Mask):
    """A materialized mask: `visible` [batch or 1, queries or 1, keys] bool."""

    visible: jax.Array

    def rows(self, first: jax.Array | int, count: int) -> jax.Array:
        return _rows(self.visible, first, count)

    def take(self, positions: jax.Array) -> Mask:
        return Dense(_taken(self.visible, positions))

    def dense(self) -> jax.Array:
        return self.visible


@flax.struct.dataclass
class Combined(Mask):
    """The conjunction or disjunction of two masks."""

    left: Mask
    right: Mask
    how: Literal["and", "or"] = flax.struct.field(pytree_node=False)

    def rows(self, first: jax.Array | int, count: int) -> jax.Array:
        return self._join(self.left.rows(first, count), self.right.rows(first, count))

    def take(self, positions: jax.Array) -> Mask:
        return Combined(self.left.take(positions), self.right.take(positions), self.how)

    def dense(self) -> jax.Array:
        return self._join(self.left.dense(), self.right.dense())

    def _join(self, left: jax.Array, right: jax.Array) -> jax.Array:
        return left & right if self.how == "and" else left | right


@flax.struct.dataclass
class WithMemory(Mask):
    """`mask` with `memory_length` keys prepended, to which all queries may attend."""

    mask: Mask
    memory_length: int = flax.struct.field(pytree_node=False)

    def rows(self, first: jax.Array | int, count: int) -> jax.Array:
        return self._prepended(self.mask.rows(first, count))

    def take(self, positions: jax.Array) -> Mask:
        return WithMemory(self.mask.take(positions), self.memory_length)

    def dense(self) -> jax.Array:
        return self._prepended(self.mask.dense())

    def _prepended(self, visible: jax.Array) -> jax.Array:
        return jnp.pad(visible, ((0, 0), (0, 0), (self.memory_length, 0)), constant_values=True)


def as_mask(mask: Mask | jax.Array) -> Mask:
    """Converts a boolean array [batch or 1, queries or 1, keys]; returns masks unchanged."""
    return mask if isinstance(mask, Mask) else Dense(mask)


def named_parts(mask: Mask) -> dict[str, Pairs] | None:
    """Returns the named parts of a conjunction, such as 'causal' and 'documents'.

    Returns None if a part has no name or the mask is not a conjunction.
    """
    if isinstance(mask, Pairs):
        return {mask.name: mask} if mask.name else None
    if isinstance(mask, Combined) and mask.how == "and":
        left, right = named_parts(mask.left), named_parts(mask.right)
        if left is not None and right is not None and not left.keys() & right.keys():
            return left | right
    return None


def padding(documents: jax.Array) -> Mask:
    """Hides padding from all queries. documents: [batch, keys], 0 = padding."""
    return Pairs(jnp.zeros((1, 1), jnp.int32), (documents == 0).astype(jnp.int32), "at_most")


def same_document(documents: jax.Array) -> Mask:
    """Tokens attend only to their own document, never to padding.

    documents: [batch, length] int, 0 = padding.
    """
    return Pairs(documents, jnp.where(documents > 0, documents, -1), "equal", "documents")


def causal(length: int) -> Mask:
    """Position i attends to positions 0..i."""
    position = jnp.arange(length)[None]
    return Pairs(position, position, "at_most", "causal")


def within(distance: jax.Array | int, queries: jax.Array, keys: jax.Array) -> Mask:
    """Queries attend to keys at most `distance` positions away, on either side.

    queries, keys: [1 or batch, count] int, their positions.
    """
    ahead = Pairs(queries + distance, keys, "at_most")
    return ahead & Pairs(distance - queries, -keys, "at_most")


def prefix(in_prefix: jax.Array) -> Mask:
    """All queries attend to the prefix; combine with causal by `|` (Raffel et al. 2020, §3.2.1).

    in_prefix: [batch, length] bool.
    """
    return Pairs(jnp.zeros((1, 1), jnp.int32), (~in_prefix).astype(jnp.int32), "at_most")


def permutation(query_place: jax.Array, key_place: jax.Array) -> Mask:
    """Position i attends to the positions before it in a factorization order.

    XLNet's `perm_mask` is the negation: it is True where j is *hidden* from i, which is
    query_place[i] <= key_place[j].

    Args:
      query_place: [batch, length], place of each position in the order as a query.
      key_place: [batch, length], place of each position in the order as a key.
    """
    return Pairs(query_place, key_place, "below")


def content(mask: Mask, length: int, keys: int) -> Mask:
    """Mask of XLNet's content stream: that of the query stream, plus each token itself (eq. 3-4).

    mask: mask of `length` queries and `keys` keys; the last `length` keys are the segment itself.
    """
    own = Pairs(jnp.arange(length)[None], jnp.arange(length - keys, length)[None], "equal")
    return mask | own


def with_memory(mask: Mask, memory_length: int) -> Mask:
    """Prepends the keys of a memory, to which all queries may attend."""
    return WithMemory(mask, memory_length) if memory_length else mask


def _rows(x: jax.Array, first: jax.Array | int, count: int) -> jax.Array:
    """x[:, first : first + count], repeating the last row beyond the end; a single row is kept."""
    if x.shape[1] == 1:
        return x
    return jnp.take(x, first + jnp.arange(count), axis=1, mode="clip")


def _taken(x: jax.Array, positions: jax.Array) -> jax.Array:
    """Gathers x [batch or 1, queries or 1, ...] at positions [batch, n]; a single row is kept."""
    if x.shape[1] == 1:
        return x
    if x.shape[0] == 1:
        return x[0, positions]
    return jnp.take_along_axis(x, positions.reshape(*positions.shape, *[1] * (x.ndim - 2)), axis=1)
