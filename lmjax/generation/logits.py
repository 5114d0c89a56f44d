"""What is done to the logits of the next token, each a pure function on [batch, vocab_size].

The rules are those of `transformers`' logits processors, ties included.
"""

import jax
import jax.numpy as jnp

from lmjax.generation.config import GenerationConfig

NEVER = -jnp.inf


def processed(
    settings: GenerationConfig,
    logits: jax.Array,
    tokens: jax.Array,
    begin: jax.Array,
    end: jax.Array,
    new: jax.Array,
) -> jax.Array:
    """Logits with penalties, before temperature and truncation.

    Args:
      logits: [batch, vocab_size].
      tokens: [batch, slots], of which begin[row]..end are text.
      begin: [batch] int; end: [] int.
      new: [] int, the first slot that was generated.
    """
    slots, size = jnp.arange(tokens.shape[1])[None], logits.shape[-1]
    text = (slots >= begin[:, None]) & (slots < end)
    if settings.repetition_penalty != 1:
        logits = repetition_penalty(logits, seen(tokens, text, size), settings.repetition_penalty)
    if settings.presence_penalty:
        generated = seen(tokens, text & (slots >= new), size)
        logits = presence_penalty(logits, generated, settings.presence_penalty)
    if settings.no_repeat_ngram:
        logits = no_repeat_ngram(logits, tokens, begin, end, settings.no_repeat_ngram)
    return logits


def truncated(settings: GenerationConfig, logits: jax.Array) -> jax.Array:
    """Logits to draw from: temperature, then whatever leaves tokens out."""
    logits = logits / settings.temperature
    if settings.top_k:
        logits = top_k(logits, settings.top_k)
    if settings.top_p < 1:
        logits = top_p(logits, settings.top_p)
    if settings.min_p:
        logits = min_p(logits, settings.min_p)
    if settings.typical_p < 1:
        logits = typical(logits, settings.typical_p)
    return logits


def seen(tokens: jax.Array, text: jax.Array, size: int) -> jax.Array:
    """[batch, size] bool: which tokens are in the text. text: [batch, slots] bool."""
    rows = jnp.arange(tokens.shape[0])[:, None]
    return jnp.zeros((tokens.shape[0], size), bool).at[rows, tokens].max(text)


def repetition_penalty(logits: jax.Array, seen: jax.Array, penalty: float) -> jax.Array:
    """Keskar et al. 2019 §4.1, with negative logits multiplied."""
    return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def presence_penalty(logits: jax.Array, seen: jax.Array, penalty: float) -> jax.Array:
    """`penalty` off the logits of what was seen."""
    return logits - penalty * seen


def no_repeat_ngram(
    logits: jax.Array, tokens: jax.Array, begin: jax.Array, end: jax.Array, n: int
) -> jax.Array:
    """Forbids tokens that would complete an n-gram which the text has already."""
    slots = tokens.shape[1]
    starts = jnp.arange(slots)
    # The last n - 1 tokens, and those n - 1 tokens from each slot on.
    match = (starts[None] >= begin[:, None]) & (starts[None] + n - 1 < end)
    for k in range(n - 1):
        last = jax.lax.dynamic_index_in_dim(tokens, jnp.maximum(end - (n - 1) + k, 0), 1)
        match &= jnp.roll(tokens, -k, axis=1) == last
    # A text shorter than n - 1 tokens has no last ones.
    match &= (end - begin >= n - 1)[:, None]
    banned = seen(jnp.roll(tokens, -(n - 1), axis=1), match, logits.shape[-1])
    return jnp.where(banned, NEVER, logits)


def top_k(logits: jax.Array, k: int) -> jax.Array:
    """The k largest, and those equal to the smallest of them (Fan et al. 2018)."""
    least = jax.lax.top_k(logits, min(k, logits.shape[-1]))[0][..., -1:]
    return jnp.where(logits < least, NEVER, logits)


def top_p(logits: jax.Array, p: float) -> jax.Array:
    """The fewest that hold at least p of the probability (Holtzman et al. 2020 §3.1)."""
    order = jnp.argsort(logits, axis=-1)
    shares = jax.nn.softmax(jnp.take_along_axis(logits, order, -1), axis=-1)
    left_out = jnp.cumsum(shares, -1) <= 1 - p
    left_out = left_out.at[..., -1].set(False)
    return jnp.where(jnp.take_along_axis(left_out, jnp.argsort(order, -1), -1), NEVER, logits)


def min_p(logits: jax.Array, share: float) -> jax.Array:
    """Those at least `share` times as likely as the likeliest (Nguyen et al. 2024)."""
    return jnp.where(logits < logits.max(-1, keepdims=True) + jnp.log(share), NEVER, logits)


def typical(logits: jax.Array, mass: float) -> jax.Array:
    """Those whose surprise is nearest to the entropy, until they hold `mass`.

    Meister et al. 2023 §3.2.
    """
    logs = jax.nn.log_softmax(logits, axis=-1)
    entropy = -jnp.where(jnp.isneginf(logs), 0.0, jnp.exp(logs) * logs).sum(-1, keepdims=True)
    distance = jnp.abs(-logs - entropy)
    order = jnp.argsort(distance, axis=-1)
    held = jnp.cumsum(jnp.exp(jnp.take_along_axis(logs, order, -1)), -1)
    last = jnp.minimum((held < mass).sum(-1, keepdims=True), logits.shape[-1] - 1)
    farthest = jnp.take_along_axis(jnp.take_along_axis(distance, order, -1), last, -1)
    return jnp.where(distance > farthest, NEVER, logits)
