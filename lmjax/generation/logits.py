"""Transformations of logits [batch, vocab] before a token is chosen.

The rules, including ties, are those of `transformers` (generation/logits_process.py). A token that
is ruled out has the logit -inf. The rows' texts are `tokens` [batch, slots] int where `valid`
[batch, slots] is True; the valid slots of a row are contiguous.
"""

import math

import flax.struct
import jax
import jax.numpy as jnp

from lmjax.generation.settings import GenerationConfig
from lmjax.nn.layers import sample_categorical


def repetition_penalty(
    logits: jax.Array, tokens: jax.Array, valid: jax.Array, penalty: jax.Array | float
) -> jax.Array:
    """Makes tokens of the text less probable, by logit / penalty or logit * penalty."""
    penalised = jnp.where(logits < 0, logits * penalty, logits / penalty)
    return jnp.where(_seen(tokens, valid, logits.shape[-1]), penalised, logits)


def presence_penalty(
    logits: jax.Array, tokens: jax.Array, valid: jax.Array, penalty: jax.Array | float
) -> jax.Array:
    """Subtracts `penalty` once from the logit of every token that occurs."""
    return logits - penalty * _seen(tokens, valid, logits.shape[-1])


def no_repeat_ngram(logits: jax.Array, tokens: jax.Array, valid: jax.Array, size: int) -> jax.Array:
    """Rules out tokens that would complete an n-gram of `size` that already occurs."""
    slots = tokens.shape[1]
    slot = jnp.arange(slots)
    end = jnp.max(jnp.where(valid, slot + 1, 0), axis=1)  # after the last token
    completes = valid
    for back in range(1, size):
        last = jnp.take_along_axis(tokens, jnp.maximum(end - back, 0)[:, None], axis=1)
        before = jnp.roll(tokens, back, axis=1)
        there = jnp.roll(valid, back, axis=1) & (slot >= back)
        completes &= there & (before == last)
    # A text of fewer than size - 1 tokens has no n-gram prefix.
    completes &= (valid.sum(1) >= size - 1)[:, None]
    return jnp.where(_seen(tokens, completes, logits.shape[-1]), -jnp.inf, logits)


def temperature(logits: jax.Array, value: jax.Array | float) -> jax.Array:
    """Divides logits by `value`: above 1 the distribution is flatter, below 1 sharper.

    The largest logit is shifted to 0 first, so that a temperature near 0 can only overflow to
    -inf, which leaves the most probable token.
    """
    largest = logits.max(-1, keepdims=True)
    # If all tokens are ruled out, the largest is -inf, and -inf - -inf would be NaN.
    return (logits - jnp.where(jnp.isneginf(largest), 0.0, largest)) / value


def top_k(logits: jax.Array, k: int) -> jax.Array:
    """Keeps logits that are at least the k-th largest; ties are kept."""
    least = jax.lax.top_k(logits, min(k, logits.shape[-1]))[0][:, -1:]
    return jnp.where(logits < least, -jnp.inf, logits)


def top_p(logits: jax.Array, mass: jax.Array | float) -> jax.Array:
    """Keeps the smallest set of the most probable tokens whose probabilities sum to `mass`.

    Removes tokens from the least probable on, as long as their sum is at most 1 - mass.
    """
    order = jnp.argsort(logits, axis=-1, stable=True)
    ascending = jnp.take_along_axis(logits, order, axis=-1)
    gone = jnp.cumsum(jax.nn.softmax(ascending, axis=-1), axis=-1) <= 1 - mass
    gone = gone.at[:, -1].set(False)
    return jnp.where(_unsorted(gone, order), -jnp.inf, logits)


def min_p(logits: jax.Array, part: jax.Array | float) -> jax.Array:
    """Keeps tokens with at least `part` times the largest probability."""
    probabilities = jax.nn.softmax(logits, axis=-1)
    least = part * probabilities.max(-1, keepdims=True)
    # The largest is always kept: with part = 1, rounding might remove it.
    gone = (probabilities < least) & (logits < logits.max(-1, keepdims=True))
    return jnp.where(gone, -jnp.inf, logits)


def typical(logits: jax.Array, mass: jax.Array | float) -> jax.Array:
    """Keeps the smallest set with `mass` whose -log p is closest to the entropy, and ties."""
    log_p = jax.nn.log_softmax(logits, axis=-1)
    p = jnp.exp(log_p)
    entropy = -jnp.where(p > 0, log_p * p, 0.0).sum(-1, keepdims=True)
    distance = jnp.abs(-log_p - entropy)
    order = jnp.argsort(distance, axis=-1, stable=True)
    nearest = jnp.take_along_axis(distance, order, axis=-1)
    below = jnp.cumsum(jnp.take_along_axis(p, order, axis=-1), axis=-1) < mass
    last = jnp.minimum(below.sum(-1, keepdims=True), logits.shape[-1] - 1)
    gone = nearest > jnp.take_along_axis(nearest, last, axis=-1)
    gone = gone.at[:, 0].set(False)
    return jnp.where(_unsorted(gone, order), -jnp.inf, logits)


def _seen(tokens: jax.Array, valid: jax.Array, vocab: int) -> jax.Array:
    """Returns [batch, vocab] bool: whether the token occurs in a valid slot."""
    rows = jnp.arange(tokens.shape[0])[:, None]
    return jnp.zeros((tokens.shape[0], vocab), bool).at[rows, tokens].max(valid)


def _unsorted(x: jax.Array, order: jax.Array) -> jax.Array:
    """Undoes a sort: column i of x [batch, vocab] belongs to token order[:, i]."""
    rows = jnp.arange(x.shape[0])[:, None]
    return jnp.zeros_like(x).at[rows, order].set(x)


@flax.struct.dataclass
class Filters:
    """The active filters, in the order of `transformers`; None or 0 is off.

    Values are arrays, so that another temperature does not recompile. The set of active filters
    and the two sizes are static.
    """

    repetition_penalty: jax.Array | None = None
    presence_penalty: jax.Array | None = None
    temperature: jax.Array | None = None
    top_p: jax.Array | None = None
    min_p: jax.Array | None = None
    typical_p: jax.Array | None = None
    top_k: int = flax.struct.field(default=0, pytree_node=False)
    no_repeat_ngram_size: int = flax.struct.field(default=0, pytree_node=False)

    @classmethod
    def of(cls, config: GenerationConfig) -> "Filters":
        """Creates the filters that the settings enable."""
        neutral = GenerationConfig()

        def on(name: str, least: float = -math.inf) -> jax.Array | None:
            value = getattr(config, name)
            return None if value == getattr(neutral, name) else jnp.float32(max(value, least))

        return cls(
            repetition_penalty=on("repetition_penalty"),
            presence_penalty=on("presence_penalty"),
            # Smaller values would be 0 in float32, a division by zero.
            temperature=on("temperature", least=1e-30),
            top_p=on("top_p"),
            min_p=on("min_p"),
            typical_p=on("typical_p"),
            top_k=0 if config.penalty_alpha else config.top_k,
            no_repeat_ngram_size=config.no_repeat_ngram_size,
        )

    def penalise(
        self, logits: jax.Array, tokens: jax.Array, valid: jax.Array, generated: jax.Array
    ) -> jax.Array:
        """Applies penalties for tokens of the text.

        Args:
          generated: [batch, slots] bool, the slots of `valid` after the prompt.
        """
        if self.repetition_penalty is not None:
            logits = repetition_penalty(logits, tokens, valid, self.repetition_penalty)
        if self.presence_penalty is not None:
            logits = presence_penalty(logits, tokens, generated, self.presence_penalty)
        if self.no_repeat_ngram_size:
            logits = no_repeat_ngram(logits, tokens, valid, self.no_repeat_ngram_size)
        return logits

    def shape(self, logits: jax.Array) -> jax.Array:
        """Applies temperature and filters of the distribution."""
        if self.temperature is not None:
            logits = temperature(logits, self.temperature)
        if self.top_k:
            logits = top_k(logits, self.top_k)
        if self.top_p is not None:
            logits = top_p(logits, self.top_p)
        if self.min_p is not None:
            logits = min_p(logits, self.min_p)
        if self.typical_p is not None:
            logits = typical(logits, self.typical_p)
        return logits

    def choose(self, keys: jax.Array, logits: jax.Array) -> jax.Array:
        """Returns tokens [batch], sampled with `keys` [batch] or the most probable."""
        if self.temperature is None:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return jax.vmap(sample_categorical)(keys, self.shape(logits))
