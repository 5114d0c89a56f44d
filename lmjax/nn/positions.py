"""Fixed (not learned) position encodings."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.nn.trunk import RotaryConfig


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


def rotary_frequencies(
    rotary: RotaryConfig, base: float, head_dim: int
) -> tuple[np.ndarray, float]:
    """Returns the angles per position, float32 [head_dim / 2], and a factor of queries and keys.

    The factor is 1 except with 'yarn' (Peng et al. 2023, section 3.4).
    """
    pairs = np.arange(0, head_dim, 2) / head_dim
    frequencies = base**-pairs
    factor, scale = rotary.factor, 1.0
    if rotary.extension == "linear":
        frequencies = frequencies / factor
    elif rotary.extension == "llama3":
        # Wavelengths longer than the original length are extended, those shorter than a quarter of
        # it are not, and those between are interpolated.
        turns = rotary.original_length * frequencies / (2 * math.pi)
        keep = np.clip((turns - 1) / (4 - 1), 0, 1)
        frequencies = keep * frequencies + (1 - keep) * frequencies / factor
    elif rotary.extension == "yarn":
        # Dimensions that turn 32 times or more in the original length are kept, those that turn
        # once or less are extended; the ramp between is linear in the index of the dimension.
        def index(turns: float) -> float:
            wavelength = rotary.original_length / (2 * math.pi * turns)
            return head_dim * math.log(wavelength) / (2 * math.log(base))

        low, high = max(math.floor(index(32)), 0), min(math.ceil(index(1)), head_dim - 1)
        ramp = np.clip((np.arange(head_dim // 2) - low) / max(high - low, 1e-3), 0, 1)
        frequencies = (1 - ramp) * frequencies + ramp * frequencies / factor
        scale = 0.1 * math.log(factor) + 1.0
    return frequencies.astype(np.float32), scale


def rotate(x: jax.Array, angles: jax.Array, scale: jax.Array | float = 1.0) -> jax.Array:
    """Rotates the pairs of features (i, i + head_dim / 2) of each head by its angle i.

    Su et al. 2021, eq. 34, with the order of features of GPT-NeoX and Llama.

    Args:
      x: [batch, length, heads, head_dim].
      angles: [batch, length, head_dim / 2] radians.
      scale: factor of the result.
    """
    cosine, sine = (f(angles)[:, :, None] * scale for f in (jnp.cos, jnp.sin))
    first, second = jnp.split(x, 2, axis=-1)
    turned = (first * cosine - second * sine, second * cosine + first * sine)
    return jnp.concatenate(turned, axis=-1)
