"""Token by token: the likeliest, or a draw. One compiled loop for all prompts of a bucket."""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from lmjax.generation.config import GenerationConfig
from lmjax.generation.logits import processed, truncated
from lmjax.generation.reading import Reader, Text


@flax.struct.dataclass
class Generating:
    """Texts under way.

    Attributes:
      text: what stands there.
      kept: what the reader keeps.
      logits: [batch, vocab_size] of the next token.
      log_probabilities: [batch, slots] of generated tokens, under the model as it is.
      done: [batch] bool; a text that is done is filled up with its last token.
    """

    text: Text
    kept: Any
    logits: jax.Array
    log_probabilities: jax.Array
    done: jax.Array


@functools.partial(jax.jit, static_argnums=(0, 3))
def begin(reader: Reader, params: Any, text: Text, length: int, done: jax.Array) -> Generating:
    """Reads the prompts, which end at slot `length`."""
    logits, kept = reader.start(params, text, length)
    return Generating(text, kept, logits, jnp.zeros(text.tokens.shape), done)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def advance(
    reader: Reader,
    settings: GenerationConfig,
    params: Any,
    state: Generating,
    keys: jax.Array,
    until: jax.Array,
    ends: jax.Array,
) -> Generating:
    """Generates up to slot `until`, or until all are done.

    Args:
      settings: `sample` or `greedy`; what depends on the text's length or on the seed is not
        read from it, so that its values share a program.
      keys: [batch] typed keys, of each text its own; token i of a text is drawn with its i-th.
      until: [] int.
      ends: [] int, the token that ends a text.
    """

    def unfinished(state: Generating) -> jax.Array:
        return (state.text.end < until) & ~state.done.all()

    def generate(state: Generating) -> Generating:
        text = state.text
        logits = processed(settings, state.logits, text.tokens, text.begin, text.end, text.prompt)
        if settings.method == "sample":
            drawn = jax.vmap(jax.random.fold_in, (0, None))(keys, text.end - text.prompt)
            token = jax.vmap(jax.random.categorical)(drawn, truncated(settings, logits))
        else:
            token = jnp.argmax(logits, axis=-1)
        token = jnp.where(state.done, ends, token).astype(jnp.int32)
        logs = jax.nn.log_softmax(state.logits, axis=-1)
        logs = jnp.where(state.done, 0.0, jnp.take_along_axis(logs, token[:, None], -1)[:, 0])
        written = jax.lax.dynamic_update_slice(
            state.log_probabilities, logs[:, None], (0, text.end)
        )
        text = text.append(token)
        next_logits, kept = reader.step(params, text, state.kept)
        return Generating(text, kept, next_logits, written, state.done | (token == ends))

    return jax.lax.while_loop(unfinished, generate, state)
