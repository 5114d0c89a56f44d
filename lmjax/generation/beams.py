"""Beam search, with the rules of `transformers` (generation/utils.py, `_beam_search`).

The search keeps `num_beams` running and `num_beams` finished texts per prompt. Each step considers
the 2 * num_beams best continuations, so that at least `num_beams` of them can keep running.
Continuations that end and are among the best `num_beams` compete with the finished texts.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lmjax.convert.pretrained import Pretrained
from lmjax.generation.logits import Filters
from lmjax.generation.outputs import RULED_OUT, Generated, finish
from lmjax.generation.prompts import Prompt, check_room, end_of_text, left_padded
from lmjax.generation.settings import GenerationConfig
from lmjax.objectives.base import apply

NEVER = -1e9  # the score of missing beams


@flax.struct.dataclass
class Beams:
    """Texts of every prompt, [prompts, beams, ...], sorted from best to worst.

    Attributes:
      tokens: [..., slots] int.
      log_probs: [..., new tokens] float32, of each token under the model.
      scores: [prompts, beams] float32: the sum of log-probabilities for running texts, that
        sum / new tokens ** length_penalty for finished texts.
    """

    tokens: jax.Array
    log_probs: jax.Array
    scores: jax.Array

    def take(self, index: jax.Array) -> "Beams":
        """Selects beams by index [prompts, n]."""
        return jax.tree.map(lambda x: _take(x, index), self)

    def beside(self, other: "Beams") -> "Beams":
        """Concatenates the beams of each prompt."""
        return jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=1), self, other)


@flax.struct.dataclass
class State:
    """The state of the search.

    Attributes:
      open: [prompts] bool, whether the search may still find a better text.
    """

    running: Beams
    finished: Beams
    is_finished: jax.Array
    lengths: jax.Array
    open: jax.Array
    blocked: jax.Array
    kept: Any
    logits: jax.Array
    new: jax.Array


def search_beams(
    model: Pretrained, prompts: Sequence[Prompt], config: GenerationConfig
) -> list[Generated]:
    """Returns the `num_return_sequences` best texts of each prompt.

    Raises:
      ConfigError: a text does not fit the position table.
    """
    check_room(model, prompts, config)
    padded = left_padded(prompts, config.max_new_tokens)
    eos = end_of_text(model, config)
    finished, lengths = _search(
        model.network,
        model.params,
        Filters.of(config),
        *(padded.tokens, padded.real, np.int32(eos), np.int32(config.max_new_tokens)),
        np.float32(config.length_penalty),
        width=padded.width,
        beams=config.num_beams,
        early_stopping=config.early_stopping,
    )
    finished, lengths = jax.device_get((finished, lengths))
    texts = []
    for row, prompt in enumerate(prompts):
        for beam in range(config.num_return_sequences):
            length = int(lengths[row, beam])
            new = finished.tokens[row, beam, padded.width : padded.width + length]
            log_probs = finished.log_probs[row, beam, :length]
            score = float(finished.scores[row, beam])
            texts.append(finish(model.tokenizer, prompt, new, log_probs, eos, score=score))
    return texts


@functools.partial(jax.jit, static_argnums=0, static_argnames=("width", "beams", "early_stopping"))
def _search(
    network: nn.Module,
    params: Any,
    filters: Filters,
    tokens: jax.Array,
    real: jax.Array,
    eos: jax.Array,
    most: jax.Array,
    length_penalty: jax.Array,
    *,
    width: int,
    beams: int,
    early_stopping: bool | str,
) -> tuple[Beams, jax.Array]:
    """Returns the finished texts and their numbers of new tokens [prompts, beams]."""
    rows, slots = tokens.shape
    slot = jnp.arange(slots)
    real = jnp.repeat(real, beams, axis=0)

    def flat(x: jax.Array) -> jax.Array:
        return x.reshape(rows * beams, *x.shape[2:])

    def going(state: State) -> jax.Array:
        going = (state.new < most) & state.open.any() & ~state.blocked
        if early_stopping is True:
            going &= ~state.is_finished.all()
        return going

    def step(state: State) -> State:
        log_p = jax.nn.log_softmax(state.logits, axis=-1)
        valid = real & (slot < width + state.new)
        text = flat(state.running.tokens)
        penalised = filters.penalise(log_p, text, valid, valid & (slot >= width))
        vocab = log_p.shape[-1]
        scores = penalised.reshape(rows, beams, vocab) + state.running.scores[..., None]
        best, index = jax.lax.top_k(scores.reshape(rows, -1), 2 * beams)
        parent, token = index // vocab, (index % vocab).astype(jnp.int32)
        chosen = jnp.take_along_axis(
            _take(log_p.reshape(rows, beams, vocab), parent), token[..., None], 2
        )
        chosen = jnp.where(jnp.isneginf(best)[..., None], RULED_OUT, chosen)
        old = state.running.take(parent)
        candidates = Beams(
            jax.lax.dynamic_update_slice(old.tokens, token[..., None], (0, 0, width + state.new)),
            jax.lax.dynamic_update_slice(old.log_probs, chosen, (0, 0, state.new)),
            best,
        )
        new = state.new + 1
        ends = (token == eos) | (new >= most)

        among_best = ends & (jnp.arange(2 * beams) < beams)
        final = best / new.astype(jnp.float32) ** length_penalty
        if early_stopping is True:
            final += state.is_finished.all(1, keepdims=True) * NEVER
        final += ~state.open[:, None] * NEVER + ~among_best * NEVER
        merged = state.finished.beside(candidates.replace(scores=final))  # type: ignore[attr-defined]
        _, places = jax.lax.top_k(merged.scores, beams)
        finished = merged.take(places)
        is_finished = _take(jnp.concatenate([state.is_finished, among_best], 1), places)
        lengths = jnp.concatenate([state.lengths, jnp.full_like(parent, new)], 1)

        alive = candidates.replace(scores=best + ends * NEVER)  # type: ignore[attr-defined]
        _, places_alive = jax.lax.top_k(alive.scores, beams)
        running = alive.take(places_alive)
        source = (_take(parent, places_alive) + beams * jnp.arange(rows)[:, None]).reshape(-1)
        kept = jax.tree.map(lambda x: jnp.take(x, source, axis=0), state.kept)

        suits = most if early_stopping == "never" else new
        length = jnp.where(length_penalty > 0, suits, new).astype(jnp.float32)
        possible = running.scores[:, 0] / length**length_penalty
        worst = jnp.where(is_finished, finished.scores.min(1, keepdims=True), NEVER)
        logits, kept = jax.lax.cond(
            new < most,
            lambda: apply(
                network,
                params,
                *(flat(running.tokens), real, width + state.new, kept, width),
                method="read_token",
            ),
            lambda: (state.logits, kept),
        )
        return State(
            running=running,
            finished=finished,
            is_finished=is_finished,
            lengths=_take(lengths, places),
            open=state.open & (possible[:, None] > worst).any(1),
            blocked=ends.all(),
            kept=kept,
            logits=logits,
            new=new,
        )

    logits, kept = apply(network, params, tokens, real[::beams], width, method="read_prompt")
    texts = jnp.repeat(tokens[:, None], beams, axis=1)
    log_probs = jnp.zeros((rows, beams, slots - width))
    only_first = jnp.where(jnp.arange(beams) == 0, 0.0, NEVER)
    running = Beams(texts, log_probs, jnp.broadcast_to(only_first, (rows, beams)))
    state = State(
        running=running,
        finished=Beams(texts, log_probs, jnp.full((rows, beams), NEVER)),
        is_finished=jnp.zeros((rows, beams), bool),
        lengths=jnp.zeros((rows, beams), jnp.int32),
        open=jnp.ones(rows, bool),
        blocked=jnp.bool_(False),
        kept=jax.tree.map(lambda x: jnp.repeat(x, beams, axis=0), kept),
        logits=jnp.repeat(logits, beams, axis=0),
        new=jnp.int32(0),
    )
    state = jax.lax.while_loop(going, step, state)
    return state.finished, state.lengths


def _take(x: jax.Array, index: jax.Array) -> jax.Array:
    """Indexes x [prompts, beams, ...] with [prompts, n] -> [prompts, n, ...]."""
    return jnp.take_along_axis(x, index.reshape(*index.shape, *[1] * (x.ndim - 2)), axis=1)
