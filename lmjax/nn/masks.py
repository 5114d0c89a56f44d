"""The algebra of who may see whom.

A mask is boolean, True where a query may attend to a key, and broadcasts to
[batch, query_length, key_length]. Parts combine with `&`:
`causal(length) & same_document(documents)`.
"""

import jax
import jax.numpy as jnp


def padding(documents: jax.Array) -> jax.Array:
    """No one sees padding. documents: [batch, keys], 0 = padding -> [batch, 1, keys]."""
    return (documents > 0)[:, None, :]


def same_document(documents: jax.Array) -> jax.Array:
    """Tokens see their own document alone, never padding.

    documents: [batch, length] int, 0 = padding -> [batch, length, length].
    """
    return (documents[:, :, None] == documents[:, None, :]) & padding(documents)


def causal(length: int) -> jax.Array:
    """Position i sees 0..i. -> [1, length, length]."""
    return jnp.tril(jnp.ones((1, length, length), bool))


def prefix(in_prefix: jax.Array) -> jax.Array:
    """Everyone sees the prefix; to be joined with causal by `|` (Raffel et al. 2020, §3.2.1).

    in_prefix: [batch, length] bool -> [batch, 1, length].
    """
    return in_prefix[:, None, :]


def permutation(perm_mask: jax.Array) -> jax.Array:
    """From XLNet's `perm_mask`, [batch, length, length], where True *hides* j from i."""
    return jnp.logical_not(perm_mask)


def content(mask: jax.Array) -> jax.Array:
    """What XLNet's content stream sees: what the query stream sees, and itself (eq. 3-4).

    mask: [batch, length, keys], the last `length` keys being the segment's own.
    """
    length, keys = mask.shape[-2:]
    return mask | jnp.eye(length, keys, keys - length, dtype=bool)


def with_memory(mask: jax.Array, memory_length: int) -> jax.Array:
    """Prepends keys of a memory that all queries see: [..., keys] -> [..., memory + keys]."""
    return jnp.pad(mask, [(0, 0)] * (mask.ndim - 1) + [(memory_length, 0)], constant_values=True)
