"""The algebra of who may see whom.

A `Mask` is True where a query may attend to a key. It is kept as what it follows from, a few
numbers a token, and written out for some queries at a time, so that attention in chunks needs
memory linear in the length. Parts combine with `&` and `|`, with boolean arrays too:
`causal(length) & same_document(documents)`.
"""

import abc
from typing import Literal

import flax.struct
import jax
import jax.numpy as jnp


class Mask(abc.ABC):
    """A boolean [batch, queries, keys], or [1, ...] or [batch, 1, keys] which broadcast to it."""

    @abc.abstractmethod
    def rows(self, first: jax.Array | int, count: int) -> jax.Array:
        """Queries first..first + count, written out. Beyond the last query it says anything."""

    @abc.abstractmethod
    def take(self, positions: jax.Array) -> "Mask":
        """The mask of the queries at `positions` [batch, n]."""

    @abc.abstractmethod
    def dense(self) -> jax.Array:
        """All queries, written out."""

    def __and__(self, other: "Mask | jax.Array") -> "Mask":
        return Combined(self, as_mask(other), "and")

    def __or__(self, other: "Mask | jax.Array") -> "Mask":
        return Combined(self, as_mask(other), "or")

    __rand__, __ror__ = __and__, __or__


@flax.struct.dataclass
class Pairs(Mask):
    """A relation between a number of the query and one of the key.

    Attributes:
      query: [batch or 1, queries or 1].
      key: [batch or 1, keys].
      relation: of the key's number to the query's.
      name: what a kernel that has this mask built in needs to know it by, while its queries
        are all positions; '' = no kernel has it.
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
    """A mask that is written out: `visible` [batch or 1, queries or 1, keys] bool."""

    visible: jax.Array

    def rows(self, first: jax.Array | int, count: int) -> jax.Array:
        return _rows(self.visible, first, count)

    def take(self, positions: jax.Array) -> Mask:
        return Dense(_taken(self.visible, positions))

    def dense(self) -> jax.Array:
        return self.visible


@flax.struct.dataclass
class Combined(Mask):
    """Both of two masks, or either."""

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
    """`mask` with `memory_length` more keys in front, which all see."""

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
    """A boolean array [batch or 1, queries or 1, keys] as a mask; a mask as it is."""
    return mask if isinstance(mask, Mask) else Dense(mask)


def named_parts(mask: Mask) -> dict[str, Pairs] | None:
    """The parts of a conjunction by their names, such as causal and documents.

    None where a part has no name, or is not one of a conjunction.
    """
    if isinstance(mask, Pairs):
        return {mask.name: mask} if mask.name else None
    if isinstance(mask, Combined) and mask.how == "and":
        left, right = named_parts(mask.left), named_parts(mask.right)
        if left is not None and right is not None and not left.keys() & right.keys():
            return left | right
    return None


def padding(documents: jax.Array) -> Mask:
    """No one sees padding. documents: [batch, keys], 0 = padding."""
    return Pairs(jnp.zeros((1, 1), jnp.int32), (documents == 0).astype(jnp.int32), "at_most")


def same_document(documents: jax.Array) -> Mask:
    """Tokens see their own document alone, never padding.

    documents: [batch, length] int, 0 = padding.
    """
    return Pairs(documents, jnp.where(documents > 0, documents, -1), "equal", "documents")


def causal(length: int) -> Mask:
    """Position i sees 0..i."""
    position = jnp.arange(length)[None]
    return Pairs(position, position, "at_most", "causal")


def prefix(in_prefix: jax.Array) -> Mask:
    """Everyone sees the prefix; to be joined with causal by `|` (Raffel et al. 2020, §3.2.1).

    in_prefix: [batch, length] bool.
    """
    return Pairs(jnp.zeros((1, 1), jnp.int32), (~in_prefix).astype(jnp.int32), "at_most")


def permutation(query_place: jax.Array, key_place: jax.Array) -> Mask:
    """In a factorisation order position i sees what stands before it.

    XLNet's `perm_mask`, which is True where it *hides* j from i, is
    query_place[i] <= key_place[j].

    Args:
      query_place: [batch, length], where a position stands as the one that looks.
      key_place: [batch, length], where it stands as the one that is seen.
    """
    return Pairs(query_place, key_place, "below")


def content(mask: Mask, length: int, keys: int) -> Mask:
    """What XLNet's content stream sees: what the query stream sees, and itself (eq. 3-4).

    mask: of `length` queries and `keys` keys, the last `length` being the segment's own.
    """
    own = Pairs(jnp.arange(length)[None], jnp.arange(length - keys, length)[None], "equal")
    return mask | own


def with_memory(mask: Mask, memory_length: int) -> Mask:
    """Prepends keys of a memory that all queries see."""
    return WithMemory(mask, memory_length) if memory_length else mask


def _rows(x: jax.Array, first: jax.Array | int, count: int) -> jax.Array:
    """x[:, first : first + count]; the last row again beyond the end; one row is for all."""
    if x.shape[1] == 1:
        return x
    return jnp.take(x, first + jnp.arange(count), axis=1, mode="clip")


def _taken(x: jax.Array, positions: jax.Array) -> jax.Array:
    """Rows of x [batch or 1, queries or 1, ...] at positions [batch, n]; one row is for all."""
    if x.shape[1] == 1:
        return x
    if x.shape[0] == 1:
        return x[0, positions]
    return jnp.take_along_axis(x, positions.reshape(*positions.shape, *[1] * (x.ndim - 2)), axis=1)
