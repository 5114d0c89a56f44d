"""What is done to logits before a token is chosen, each a function of [batch, vocab].

The rules, down to ties, are those of `transformers` (generation/logits_process.py). A token
that is ruled out has the logit -inf. Of the rows' texts, `tokens` [batch, slots] int, only the
slots count where `valid` [batch, slots] is True; they stand side by side.
"""

import math

import flax.struct
import jax
import jax.numpy as jnp

from lmjax.generation.settings import GenerationConfig


def repetition_penalty(
    logits: jax.Array, tokens: jax.Array, valid: jax.Array, penalty: jax.Array | float
) -> jax.Array:
    """Makes every token of the text less probable, by logit / penalty or logit * penalty."""
    penalised = jnp.where(logits < 0, logits * penalty, logits / penalty)
    return jnp.where(_seen(tokens, valid, logits.shape[-1]), penalised, logits)


def presence_penalty(
    logits: jax.Array, tokens: jax.Array, valid: jax.Array, penalty: jax.Array | float
) -> jax.Array:
    """Takes `penalty` off the logit of every token that is there, however often."""
    return logits - penalty * _seen(tokens, valid, logits.shape[-1])


def no_repeat_ngram(logits: jax.Array, tokens: jax.Array, valid: jax.Array, size: int) -> jax.Array:
    """Rules out what would complete an n-gram of `size` that the text has already."""
    slots = tokens.shape[1]
    slot = jnp.arange(slots)
    end = jnp.max(jnp.where(valid, slot + 1, 0), axis=1)  # behind the last token
    completes = valid
    for back in range(1, size):
        last = jnp.take_along_axis(tokens, jnp.maximum(end - back, 0)[:, None], axis=1)
        before = jnp.roll(tokens, back, axis=1)
        there = jnp.roll(valid, back, axis=1) & (slot >= back)
        completes &= there & (before == last)
    # Fewer than size - 1 tokens begin no n-gram.
    completes &= (valid.sum(1) >= size - 1)[:, None]
    return jnp.where(_seen(tokens, completes, logits.shape[-1]), -jnp.inf, logits)


def temperature(logits: jax.Array, value: jax.Array | float) -> jax.Array:
    """Flatter above 1, sharper below.

    The largest logit becomes 0, so that a temperature near 0 overflows to -inf alone, which
    leaves the most probable token.
    """
    largest = logits.max(-1, keepdims=True)
    # Where all tokens are ruled out, the largest is -inf, and -inf - -inf no number.
    return (logits - jnp.where(jnp.isneginf(largest), 0.0, largest)) / value


def top_k(logits: jax.Array, k: int) -> jax.Array:
    """Only what is no less than the k-th largest: ties with it stay."""
    least = jax.lax.top_k(logits, min(k, logits.shape[-1]))[0][:, -1:]
    return jnp.where(logits < least, -jnp.inf, logits)


def top_p(logits: jax.Array, mass: jax.Array | float) -> jax.Array:
    """The smallest set of the most probable tokens whose probabilities sum to `mass`.

    What is less probable than the one that completes it goes: from the least probable on, as
    long as the sum is no more than 1 - mass.
    """
    order = jnp.argsort(logits, axis=-1, stable=True)
    ascending = jnp.take_along_axis(logits, order, axis=-1)
    gone = jnp.cumsum(jax.nn.softmax(ascending, axis=-1), axis=-1) <= 1 - mass
    gone = gone.at[:, -1].set(False)
    return jnp.where(_unsorted(gone, order), -jnp.inf, logits)


def min_p(logits: jax.Array, part: jax.Array | float) -> jax.Array:
    """Only what has `part` of the largest probability."""
    probabilities = jax.nn.softmax(logits, axis=-1)
    least = part * probabilities.max(-1, keepdims=True)
    # The largest stays, whatever rounding makes of part = 1.
    gone = (probabilities < least) & (logits < logits.max(-1, keepdims=True))
    return jnp.where(gone, -jnp.inf, logits)


def typical(logits: jax.Array, mass: jax.Array | float) -> jax.Array:
    """The smallest set of `mass` whose -log p is nearest to the entropy; ties stay."""
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
    """[batch, vocab] bool: the token stands in one of the valid slots."""
    rows = jnp.arange(tokens.shape[0])[:, None]
    return jnp.zeros((tokens.shape[0], vocab), bool).at[rows, tokens].max(valid)


def _unsorted(x: jax.Array, order: jax.Array) -> jax.Array:
    """x [batch, vocab], whose column i belongs to token order[:, i], by token."""
    rows = jnp.arange(x.shape[0])[:, None]
    return jnp.zeros_like(x).at[rows, order].set(x)


@flax.struct.dataclass
class Filters:
    """Those that are on, in the order of `transformers`; None or 0 is off.

    Values are arrays, so that another temperature compiles nothing anew; what they are of
    and the two sizes are part of the program.
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
        """Those that the settings turn on."""
        neutral = GenerationConfig()

        def on(name: str, least: float = -math.inf) -> jax.Array | None:
            value = getattr(config, name)
            return None if value == getattr(neutral, name) else jnp.float32(max(value, least))

        return cls(
            repetition_penalty=on("repetition_penalty"),
            presence_penalty=on("presence_penalty"),
            # As float32, a smaller one would be 0, which divides by nothing.
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
        """Those that look at the text. generated: [batch, slots] bool, of `valid`, not prompt."""
        if self.repetition_penalty is not None:
            logits = repetition_penalty(logits, tokens, valid, self.repetition_penalty)
        if self.presence_penalty is not None:
            logits = presence_penalty(logits, tokens, generated, self.presence_penalty)
        if self.no_repeat_ngram_size:
            logits = no_repeat_ngram(logits, tokens, valid, self.no_repeat_ngram_size)
        return logits

    def shape(self, logits: jax.Array) -> jax.Array:
        """Those that look at the distribution alone."""
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
        """Tokens [batch], drawn with `keys` [batch], or the most probable."""
        if self.temperature is None:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        draw = jax.vmap(jax.random.categorical)
        return draw(keys, self.shape(logits)).astype(jnp.int32)
