"""XLNet's prediction targets and factorization order, for one part of one example.

A port of `_sample_mask` and `_local_perm` in the authors' data_utils.py that runs on the device;
Yang et al. 2019 §2.3, §2.6 and App. A.
"""

import jax
import jax.numpy as jnp


def choose_targets(
    key: jax.Array, starts_word: jax.Array, count: int, *, spans: bool, max_ngram: int, alpha: int
) -> jax.Array:
    """Chooses exactly `count` positions of a part, as n-grams or as single tokens.

    An n-gram is n pieces (the authors' code requires a word start only at its first piece; xlnet
    issue 220 calls this unintended but working). n is drawn with p ~ 1/n. The n-gram is placed at
    a random offset in a context of alpha * n tokens and moved right to the next word start; the
    next context begins where this one ends. Uniformly drawn single tokens fill the rest of the
    quota.

    Args:
      starts_word: [size] bool.

    Returns:
      [size] bool.
    """
    size = starts_word.shape[0]
    index = jnp.arange(size)
    for_spans, for_rest = jax.random.split(key)
    masked = jnp.zeros(size, bool)
    if spans:
        # Position of the first word start at or after each position; `size` if there is none.
        next_start = jax.lax.cummin(jnp.where(starts_word, index, size), reverse=True)
        log_p = -jnp.log(jnp.arange(1.0, max_ngram + 1))

        def draw(i: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            masked, cursor, taken, open_ = state
            for_n, for_offset = jax.random.split(jax.random.fold_in(for_spans, i))
            n = jnp.minimum(1 + jax.random.categorical(for_n, log_p), count - taken)
            context = n * alpha
            left = jax.random.randint(for_offset, (), 0, jnp.maximum(context, 1))
            at = cursor + left
            begin = jnp.where(at < size, next_start[jnp.minimum(at, size - 1)], size)
            end = begin + n
            # An n-gram that reaches the end of the part is dropped, and so are the following ones.
            open_ &= (taken < count) & (cursor < size) & (end < size)
            masked |= open_ & (index >= begin) & (index < end)
            taken += jnp.where(open_, n, 0)
            cursor = jnp.where(open_, end + context - left, cursor)
            return masked, cursor, taken, open_

        # Each n-gram with its context spans at least alpha + 1 tokens.
        draws = min(count, size // (alpha + 1) + 1)
        state = (masked, jnp.int32(0), jnp.int32(0), jnp.bool_(True))
        masked = jax.lax.fori_loop(0, draws, draw, state)[0]
    priority = jnp.where(masked, -1.0, jax.random.uniform(for_rest, (size,)))
    return jnp.argsort(jnp.argsort(priority)) < count


def factorization_order(key: jax.Array, size: int, perm_size: int) -> jax.Array:
    """Draws the place of each position in the order: [size] int, a permutation.

    Consecutive blocks of `perm_size` use the same permutation (the authors shuffle one block and
    repeat it).
    """
    order = jax.random.permutation(key, perm_size)
    blocks = jnp.arange(0, size, perm_size)
    return (blocks[:, None] + order[None, :]).reshape(size)


def places(
    order: jax.Array, is_masked: jax.Array, functional: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the place of each position of a part in the order, as a query and as a key.

    Position i attends to j where key_place[j] < query_place[i]. Tokens that are neither masked nor
    functional come first: all positions attend to them, and they attend only to each other. A
    target attends to the positions before it in the order, but not to itself. Functional tokens
    (SEP, CLS) are part of the order too; they attend to themselves and are never targets.

    Args:
      order: [size] int, place in the order.
      is_masked: [size] bool.
      functional: [size] bool.

    Returns:
      query_place, 0 to size, and key_place, -1 to size - 1: [size] int each.
    """
    plain = ~is_masked & ~functional
    key_place = jnp.where(plain, -1, order)
    targets = ~plain & ~functional
    return jnp.where(targets, key_place, key_place + 1), key_place


def perm_mask(query_place: jax.Array, key_place: jax.Array) -> jax.Array:
    """XLNet's `perm_mask` [..., size, size]: True where i must not attend to j."""
    return query_place[..., :, None] <= key_place[..., None, :]
