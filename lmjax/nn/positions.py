"""Fixed (not learned) position encodings."""

import jax
import jax.numpy as jnp


def sinusoid(distances: jax.Array, features: int) -> jax.Array:
    """Sines, then cosines, of `distances` [n] at geometric frequencies -> [n, features].

    Vaswani et al. 2017 §3.5, with the column order of Transformer-XL and XLNet: all sines before
    all cosines.
    """
    frequencies = 1.0 / (10_000.0 ** (jnp.arange(0, features, 2, dtype=jnp.float32) / features))
    angles = distances.astype(jnp.float32)[:, None] * frequencies[None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def relative_distances(query_length: int, key_length: int, clamp_length: int = 0) -> jax.Array:
    """Returns the distances key_length, ..., -query_length + 1 of `relative_shift`'s columns.

    Dai et al. 2019 App. B; XLNet's bidirectional `relative_positional_encoding`.

    Args:
      clamp_length: distances are clipped to +-clamp_length; 0 = no limit.
    """
    distances = jnp.arange(key_length, -query_length, -1)
    if clamp_length > 0:
        distances = jnp.clip(distances, -clamp_length, clamp_length)
    return distances


def relative_shift(scores: jax.Array, key_length: int) -> jax.Array:
    """Converts scores by distance to scores by key, for consecutive queries.

    Args:
      scores: [..., query_length, key_length + query_length]; column p is the distance
        key_length - p.

    Returns:
      [..., query_length, key_length]; entry (i, j) is at the distance
      (key_length - query_length) + i - j.
    """
    *lead, queries, columns = scores.shape
    scores = scores.reshape(*lead, columns, queries)[..., 1:, :]
    return scores.reshape(*lead, queries, columns - 1)[..., :key_length]


def relative_shift_at(scores: jax.Array, positions: jax.Array, query_length: int) -> jax.Array:
    """Applies `relative_shift` to queries at given positions of a segment.

    Args:
      scores: [batch, heads, n, key_length + query_length].
      positions: [batch, n] in [0, query_length).

    Returns:
      [batch, heads, n, key_length].
    """
    key_length = scores.shape[-1] - query_length

    def row(columns: jax.Array, position: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(columns, query_length - position, key_length)

    rows = jax.vmap(jax.vmap(row))  # over batch, queries
    return jax.vmap(rows, in_axes=(1, None), out_axes=1)(scores, positions)
