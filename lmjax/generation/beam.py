"""Beam search: texts of the highest log p / tokens^length_penalty, by `transformers`' rules."""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from lmjax.generation.config import GenerationConfig
from lmjax.generation.logits import processed
from lmjax.generation.reading import Reader, Text

_NEVER = -1e9


@flax.struct.dataclass
class _Beams:
    """Attributes: running texts and finished ones, [prompts, beams, ...] each.

    running_scores are log p, scores log p / tokens^length_penalty; `open` [prompts] says
    whether a running text may still beat a finished one.
    """

    running: jax.Array
    running_scores: jax.Array
    finished: jax.Array
    scores: jax.Array
    is_finished: jax.Array
    lengths: jax.Array
    open: jax.Array
    end: jax.Array
    logits: jax.Array
    kept: Any


@functools.partial(jax.jit, static_argnums=(0, 1, 4))
def search(
    reader: Reader,
    settings: GenerationConfig,
    params: Any,
    text: Text,
    length: int,
    until: jax.Array,
    ends: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Searches from prompts that end at slot `length`, up to slot `until`.

    In each step 2 * beams continuations are looked at, so that texts that end leave enough to
    go on with. A text that ends counts where it is among the best `beams` of them. The search
    stops when the likeliest running text, at its present length, is no better than the worst
    of `beams` finished ones (early_stopping=False of `transformers`).

    Returns:
      tokens [prompts, beams, slots], scores [prompts, beams] from the best down, and the slot
      after each text's last token [prompts, beams].
    """
    prompts = text.tokens.shape[0]
    beams, penalty = settings.beams, settings.length_penalty
    begin = jnp.repeat(text.begin, beams)

    def flat(x: jax.Array) -> jax.Array:
        return x.reshape(prompts * beams, *x.shape[2:])

    def as_text(running: jax.Array, end: jax.Array) -> Text:
        return Text(flat(running), begin, text.prompt, end)

    def chosen(x: jax.Array, index: jax.Array) -> jax.Array:
        """x [prompts, n, ...] at index [prompts, m]."""
        return jnp.take_along_axis(x, index.reshape(*index.shape, *[1] * (x.ndim - 2)), axis=1)

    def reordered(kept: Any, parents: jax.Array) -> Any:
        rows = (jnp.arange(prompts)[:, None] * beams + parents).reshape(-1)
        return jax.tree.map(lambda x: jnp.take(x, rows, axis=reader.batch_axis), kept)

    def going_on(state: _Beams) -> jax.Array:
        return (state.end < until) & state.open.any()

    def step(state: _Beams) -> _Beams:
        count = state.end - text.prompt  # tokens generated so far
        logs = jax.nn.log_softmax(state.logits, axis=-1)
        logs = processed(settings, logs, flat(state.running), begin, state.end, text.prompt)
        size = logs.shape[-1]
        sums = logs.reshape(prompts, beams, size) + state.running_scores[..., None]
        best, index = jax.lax.top_k(sums.reshape(prompts, -1), 2 * beams)
        parents, tokens = index // size, (index % size).astype(jnp.int32)
        candidates = chosen(state.running, parents)
        candidates = jax.lax.dynamic_update_slice(candidates, tokens[..., None], (0, 0, state.end))
        over = (tokens == ends) | (state.end + 1 >= until)

        running_scores, order = jax.lax.top_k(jnp.where(over, best + _NEVER, best), beams)
        running, parents_kept = chosen(candidates, order), chosen(parents, order)

        counts = over & (jnp.arange(2 * beams) < beams)
        ended = best / (count + 1.0) ** penalty
        ended = ended + jnp.where(state.open[:, None], 0.0, _NEVER)
        ended = jnp.where(counts, ended, ended + _NEVER)
        scores = jnp.concatenate([state.scores, ended], axis=1)
        scores, order = jax.lax.top_k(scores, beams)
        finished = chosen(jnp.concatenate([state.finished, candidates], axis=1), order)
        is_finished = chosen(jnp.concatenate([state.is_finished, counts], axis=1), order)
        now = jnp.full((prompts, 2 * beams), state.end + 1)
        lengths = chosen(jnp.concatenate([state.lengths, now], axis=1), order)

        # By the likeliest running text at its present length, against the worst finished one.
        hope = running_scores[:, 0] / (count + 1.0) ** penalty
        worst = jnp.where(is_finished, scores.min(1, keepdims=True), _NEVER)
        still = (hope[:, None] > worst).any(1) & state.open
        end = state.end + 1
        logits, kept = reader.step(
            params, as_text(running, end), reordered(state.kept, parents_kept)
        )
        return _Beams(
            running,
            running_scores,
            finished,
            scores,
            is_finished,
            lengths,
            still,
            end,
            logits,
            kept,
        )

    copies = jnp.repeat(text.tokens[:, None], beams, axis=1)
    logits, kept = reader.start(params, as_text(copies, text.end), length)
    none = jnp.zeros((prompts, beams))
    state = _Beams(
        running=copies,
        running_scores=jnp.where(jnp.arange(beams) == 0, none, _NEVER),
        finished=copies,
        scores=none + _NEVER,
        is_finished=none > 0,
        lengths=jnp.full((prompts, beams), text.end),
        open=jnp.ones(prompts, bool),
        end=text.end,
        logits=logits,
        kept=kept,
    )
    state = jax.lax.while_loop(going_on, step, state)
    return state.finished, state.scores, state.lengths
