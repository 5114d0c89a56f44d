"""Contrastive search (Su et al. 2022, eq. 5).

Chooses, among the k most probable next tokens, the one that maximizes
(1 - alpha) p(v) - alpha max_j cos(h_v, h_j). h_v is the last hidden state, after the final norm, at
token v; h_j are those of all preceding tokens, including the prompt.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lmjax.convert.pretrained import Pretrained
from lmjax.errors import ConfigError
from lmjax.generation.logits import Filters
from lmjax.generation.outputs import RULED_OUT, Generated, finish
from lmjax.generation.prompts import Prompt, check_room, end_of_text, left_padded
from lmjax.generation.settings import GenerationConfig
from lmjax.objectives.base import apply


@flax.struct.dataclass
class State:
    """The state of the texts: as `sampling.State`.

    Attributes:
      hidden: [rows, slots, hidden_size] normalized hidden states of the tokens before `slot`.
      logits: [rows, vocab] logits of the token at `slot`.
    """

    tokens: jax.Array
    log_probs: jax.Array
    slot: jax.Array
    done: jax.Array
    kept: Any
    hidden: jax.Array
    logits: jax.Array


def search_contrastively(
    model: Pretrained, prompts: Sequence[Prompt], config: GenerationConfig
) -> list[Generated]:
    """Generates the texts.

    Raises:
      ConfigError: the network has no cache, or a text does not fit the position table.
    """
    if not model.network.keeps_cache:
        raise ConfigError(
            f"penalty_alpha: {type(model.network).__name__} has no key-value cache, which"
            " contrastive search needs; use a GPT"
        )
    if config.constrained:
        raise ConfigError("penalty_alpha: contrastive search supports no constraints; set it to 0")
    check_room(model, prompts, config)
    eos = end_of_text(model, config)
    padded = left_padded(prompts, config.max_new_tokens)
    width = padded.width
    state = _search(
        model.network,
        model.params,
        Filters.of(config),
        *(padded.tokens, padded.real, np.arange(len(padded.tokens)) >= padded.count),
        *(np.int32(eos), np.int32(config.max_new_tokens), np.float32(config.penalty_alpha)),
        width=width,
        k=min(config.top_k, model.config.vocab_size),
    )
    new = int(state.slot) - width
    tokens, log_probs = np.asarray(state.tokens), np.asarray(state.log_probs)
    return [
        finish(
            model.tokenizer,
            prompt,
            tokens[row, width : width + new],
            log_probs[row, :new],
            eos,
            config.stop,
        )
        for row, prompt in enumerate(prompts)
    ]


@functools.partial(jax.jit, static_argnums=0, static_argnames=("width", "k"))
def _search(
    network: Any,
    params: Any,
    filters: Filters,
    tokens: jax.Array,
    real: jax.Array,
    done: jax.Array,
    eos: jax.Array,
    most: jax.Array,
    alpha: jax.Array,
    *,
    width: int,
    k: int,
) -> State:
    """Generates up to `most` tokens in every row, or until all rows are done."""
    rows, slots = tokens.shape
    read_slots = functools.partial(apply, network, params, method="read_slots")

    def decode(hidden: jax.Array) -> jax.Array:
        return apply(network, params, hidden, method="decode").astype(jnp.float32)

    slot = jnp.arange(slots)
    row = jnp.arange(rows)

    def step(state: State) -> State:
        valid = real & (slot < state.slot)
        shaped = filters.penalise(state.logits, state.tokens, valid, valid & (slot >= width))
        probabilities, candidates = jax.lax.top_k(jax.nn.softmax(shaped, axis=-1), k)
        # Reads every candidate in a copy of its row.
        copies = jax.tree.map(lambda x: jnp.repeat(x, k, axis=0), state.kept)
        read, copies = read_slots(
            candidates.reshape(-1, 1).astype(jnp.int32),
            jnp.repeat(real, k, axis=0),
            state.slot,
            copies,
        )
        read = read.reshape(rows, k, -1)
        cosine = jnp.einsum("rkh,rsh->rks", _unit(read), state.hidden)
        nearest = jnp.where(valid[:, None], cosine, -jnp.inf).max(-1)
        best = jnp.argmax((1 - alpha) * probabilities - alpha * nearest, axis=-1)
        chosen = jnp.where(state.done, 0, candidates[row, best].astype(jnp.int32))
        hidden = read[row, best]
        log_p = jax.nn.log_softmax(state.logits, axis=-1)[row, chosen]
        log_p = jnp.where(jnp.isneginf(shaped[row, chosen]), RULED_OUT, log_p)
        return State(
            tokens=jax.lax.dynamic_update_slice(state.tokens, chosen[:, None], (0, state.slot)),
            log_probs=jax.lax.dynamic_update_slice(
                state.log_probs, log_p[:, None], (0, state.slot - width)
            ),
            slot=state.slot + 1,
            done=state.done | (chosen == eos),
            kept=jax.tree.map(lambda x: jnp.take(x, row * k + best, axis=0), copies),
            hidden=jax.lax.dynamic_update_slice(
                state.hidden, _unit(hidden)[:, None], (0, state.slot, 0)
            ),
            logits=decode(hidden),
        )

    empty = network.empty_cache(rows, slots)
    hidden, kept = read_slots(tokens[:, :width], real, 0, empty)
    state = State(
        tokens=tokens,
        log_probs=jnp.zeros((rows, slots - width)),
        slot=jnp.int32(width),
        done=done,
        kept=kept,
        hidden=jnp.pad(_unit(hidden), ((0, 0), (0, slots - width), (0, 0))),
        logits=decode(hidden[:, -1]),
    )

    def going(state: State) -> jax.Array:
        return (state.slot < width + most) & ~state.done.all()

    return jax.lax.while_loop(going, step, state)


def _unit(x: jax.Array) -> jax.Array:
    """Normalizes x to length 1 along the last axis."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
