"""Greedy search and sampling: a compiled loop over tokens, run in chunks."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

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

CHUNK = 8  # tokens between two checks for stop strings


class Constraint(Protocol):
    """Tracks the tokens of each row and restricts the next one."""

    def allowed(self) -> np.ndarray:
        """Returns [rows, vocab] bool, the allowed next tokens; complete rows allow any."""

    def accept(self, tokens: np.ndarray) -> None:
        """Advances every incomplete row by one token, [rows]."""

    def complete(self) -> np.ndarray:
        """Returns [rows] bool: whether no token may follow."""


@flax.struct.dataclass
class State:
    """The state of the texts.

    Attributes:
      tokens, real: [rows, slots], as in `LeftPadded`.
      log_probs: [rows, slots - width] float32, of the new tokens under the model.
      slot: [] int, the next slot to fill.
      done: [rows] bool, whether the row is finished.
      keys: [rows] random keys.
      kept: the network's cache of the tokens before slot - 1.
    """

    tokens: jax.Array
    real: jax.Array
    log_probs: jax.Array
    slot: jax.Array
    done: jax.Array
    keys: jax.Array
    kept: Any


def continue_texts(
    model: Pretrained,
    prompts: Sequence[Prompt],
    config: GenerationConfig,
    constraint: Constraint | None = None,
    chunk: int = 0,
) -> Iterator[list[Generated]]:
    """Yields the texts so far after every `chunk` tokens, and finally the complete texts.

    Args:
      chunk: 0 = all tokens at once, or a few at a time if there are stop strings.

    Raises:
      ConfigError: a text does not fit the position table; raised before compilation.
    """
    check_room(model, prompts, config)
    eos = end_of_text(model, config)
    padded = left_padded(prompts, config.max_new_tokens)
    width, count, filters = padded.width, padded.count, Filters.of(config)
    chunk = 1 if constraint else chunk or (CHUNK if config.stop else config.max_new_tokens)

    def allowed() -> np.ndarray | None:
        if constraint is None:
            return None
        rows = constraint.allowed()
        return np.pad(rows, ((0, len(padded.tokens) - count), (0, 0)), constant_values=True)

    state = begin(
        model.network,
        model.params,
        filters,
        *(padded.tokens, padded.real, padded.keys, np.arange(len(padded.tokens)) >= count),
        np.int32(eos),
        allowed(),
        width=width,
    )
    ended_early: dict[int, Generated] = {}
    new = 1
    while True:
        tokens = np.asarray(state.tokens[:count, width:])[:, :new]
        log_probs = np.asarray(state.log_probs[:count, :new])
        if constraint is not None:
            constraint.accept(tokens[:, new - 1])
        texts = []
        for row, prompt in enumerate(prompts):
            made = ended_early.get(row) or finish(
                model.tokenizer, prompt, tokens[row], log_probs[row], eos, config.stop
            )
            if constraint is not None and made.ended == "length" and constraint.complete()[row]:
                made = dataclasses.replace(made, ended="stop")
            if made.ended != "length":
                ended_early[row] = made
            texts.append(made)
        yield texts
        if len(ended_early) == count or new >= config.max_new_tokens:
            return
        done = np.array([row in ended_early or row >= count for row in range(len(padded.tokens))])
        new = min(new + chunk, config.max_new_tokens)
        state = advance(
            model.network,
            model.params,
            filters,
            state.replace(done=done),
            np.int32(eos),
            np.int32(width + new),
            allowed(),
            width=width,
        )
        new = int(state.slot) - width


@functools.partial(jax.jit, static_argnums=0, static_argnames="width")
def begin(
    network: nn.Module,
    params: Any,
    filters: Filters,
    tokens: jax.Array,
    real: jax.Array,
    keys: jax.Array,
    done: jax.Array,
    eos: jax.Array,
    allowed: jax.Array | None,
    *,
    width: int,
) -> State:
    """Reads the prompts and chooses the first new tokens."""
    logits, kept = apply(network, params, tokens, real, width, method="read_prompt")
    log_probs = jnp.zeros((tokens.shape[0], tokens.shape[1] - width))
    state = State(tokens, real, log_probs, jnp.int32(width), done, keys, kept)
    return _choose(state, filters, logits, eos, allowed, width)


@functools.partial(jax.jit, static_argnums=0, static_argnames="width", donate_argnums=3)
def advance(
    network: nn.Module,
    params: Any,
    filters: Filters,
    state: State,
    eos: jax.Array,
    until: jax.Array,
    allowed: jax.Array | None,
    *,
    width: int,
) -> State:
    """Fills the slots before `until`, or until all rows are done."""

    def going(state: State) -> jax.Array:
        return (state.slot < until) & ~state.done.all()

    def step(state: State) -> State:
        read = (state.tokens, state.real, state.slot - 1, state.kept, width)
        logits, kept = apply(network, params, *read, method="read_token")
        state = state.replace(kept=kept)  # type: ignore[attr-defined]
        return _choose(state, filters, logits, eos, allowed, width)

    return jax.lax.while_loop(going, step, state)


def _choose(
    state: State,
    filters: Filters,
    logits: jax.Array,
    eos: jax.Array,
    allowed: jax.Array | None,
    width: int,
) -> State:
    """Chooses the next token of each row from the model's logits [rows, vocab]."""
    slot = jnp.arange(state.tokens.shape[1])
    valid = state.real & (slot < state.slot)
    shaped = filters.penalise(logits, state.tokens, valid, valid & (slot >= width))
    if allowed is not None:
        shaped = jnp.where(allowed, shaped, -jnp.inf)
    keys = jax.vmap(jax.random.fold_in, (0, None))(state.keys, state.slot - width)
    chosen = filters.choose(keys, shaped)
    chosen = jnp.where(state.done, 0, chosen)
    log_p = jax.nn.log_softmax(logits, axis=-1)
    mine = jnp.take_along_axis(log_p, chosen[:, None], axis=1)
    ruled_out = jnp.isneginf(jnp.take_along_axis(shaped, chosen[:, None], axis=1))
    mine = jnp.where(ruled_out, RULED_OUT, mine)
    return state.replace(  # type: ignore[attr-defined]
        tokens=jax.lax.dynamic_update_slice(state.tokens, chosen[:, None], (0, state.slot)),
        log_probs=jax.lax.dynamic_update_slice(state.log_probs, mine, (0, state.slot - width)),
        slot=state.slot + 1,
        done=state.done | (chosen == eos),
    )
