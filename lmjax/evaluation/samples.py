"""Readable samples of a model's predictions, as lines of text.

Each function takes an objective, its parameters and a clean held-out batch, runs one compiled
program and formats the result. For causal models, use `lmjax.generate`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.nn.layers import sample_categorical
from lmjax.objectives.base import Batch, apply
from lmjax.objectives.factorization import perm_mask
from lmjax.objectives.masked import MaskedLM
from lmjax.objectives.permuted import PermutedLM
from lmjax.objectives.rtd import ReplacedTokenDetection, sample_replacements


class Decoder(Protocol):
    """The part of a tokenizer that formatting needs."""

    def decode(self, ids: Sequence[int]) -> str:
        """Converts ids to text."""


def fill_masks(
    objective: MaskedLM, params: Any, batch: Batch, tokenizer: Decoder, key: jax.Array
) -> list[str]:
    """Returns a line per example: the text with `[original=prediction]` at masked positions.

    A correct prediction is shown as `[original]`.
    """

    @jax.jit
    def predict(params: Any, batch: Batch) -> tuple[Batch, jax.Array]:
        corrupted = _corrupt(objective, key, batch)
        logits, _ = apply(objective.network, params, *objective.inputs(corrupted))
        return corrupted, jnp.argmax(logits, -1)

    corrupted, predictions = jax.device_get(predict(params, batch))
    lines = []
    for row, tokens in enumerate(batch["tokens"]):
        marks = {}
        for slot in np.flatnonzero(corrupted["target_weights"][row]):
            truth = tokenizer.decode([corrupted["targets"][row, slot]])
            guess = tokenizer.decode([predictions[row, slot]])
            mark = f"[{truth}]" if truth == guess else f"[{truth}={guess}]"
            marks[int(corrupted["target_positions"][row, slot])] = mark
        lines.append(render(tokens, batch["segment_ids"][row], marks, tokenizer))
    return lines


def complete_in_order(
    objective: PermutedLM, params: Any, batch: Batch, tokenizer: Decoder, key: jax.Array
) -> list[str]:
    """Returns a line per example, with targets sampled in a random factorization order.

    `[3:original=sample]` is the token that is sampled third, given the text and the two tokens
    sampled before it. A correct sample is shown as `[3:original]`.
    """
    rows = batch["tokens"].shape[0]

    @jax.jit
    def complete(params: Any, batch: Batch) -> tuple[Batch, jax.Array, jax.Array]:
        corrupted = _corrupt(objective, key, batch)
        mapping, used = corrupted["target_mapping"], corrupted["target_weights"] > 0
        # Tokens that are later in the order see more tokens.
        hidden = perm_mask(corrupted["query_place"], corrupted["key_place"])
        sees = (~jnp.take_along_axis(hidden, mapping[..., None], axis=1)).sum(-1)
        turn = jnp.argsort(jnp.where(used, sees, jnp.iinfo(jnp.int32).max), axis=-1)
        mems = objective.init_mems(rows)

        def draw(i: jax.Array, tokens: jax.Array) -> jax.Array:
            inputs = objective.inputs({**corrupted, "tokens": tokens}, mems)
            output, _ = apply(objective.network, params, *inputs)
            logits = apply(objective.network, params, output, method="decode")
            slot = turn[:, i]
            now = jnp.take_along_axis(logits, slot[:, None, None], axis=1)[:, 0]
            sample = sample_categorical(jax.random.fold_in(key, i), now)
            where = jnp.take_along_axis(mapping, slot[:, None], axis=1)[:, 0]
            row = jnp.arange(rows)
            keep = ~jnp.take_along_axis(used, slot[:, None], axis=1)[:, 0]
            sample = jnp.where(keep, tokens[row, where], sample.astype(tokens.dtype))
            return tokens.at[row, where].set(sample)

        tokens = jax.lax.fori_loop(0, mapping.shape[1], draw, batch["tokens"])
        return corrupted, turn, tokens

    corrupted, turn, completed = jax.device_get(complete(params, batch))
    lines = []
    for row, tokens in enumerate(batch["tokens"]):
        marks = {}
        for place, slot in enumerate(turn[row], start=1):
            if not corrupted["target_weights"][row, slot]:
                continue
            position = int(corrupted["target_mapping"][row, slot])
            truth = tokenizer.decode([tokens[position]])
            sample = tokenizer.decode([completed[row, position]])
            said = truth if truth == sample else f"{truth}={sample}"
            marks[position] = f"[{place}:{said}]"
        lines.append(render(tokens, batch["segment_ids"][row], marks, tokenizer))
    return lines


def find_replaced(
    objective: ReplacedTokenDetection, params: Any, batch: Batch, tokenizer: Decoder, key: jax.Array
) -> list[str]:
    """Returns a line per example: the discriminator's input, with its predictions.

    `[original->replacement found]` and `[original->replacement missed]` mark replaced tokens;
    `[token?]` marks an original token that is predicted to be replaced.
    """

    @jax.jit
    def detect(params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        corrupted = _corrupt(objective, key, batch)
        inputs, where = objective.inputs(corrupted)
        logits = apply(objective.network, params, inputs, where, method="generate")
        tokens = sample_replacements(logits, corrupted)
        read = inputs.replace(tokens=tokens)
        flagged = apply(objective.network, params, read, method="discriminate")
        return tokens, flagged > 0

    read, flagged = jax.device_get(detect(params, batch))
    lines = []
    for row, tokens in enumerate(batch["tokens"]):
        marks = {}
        for position in np.flatnonzero(batch["segment_ids"][row]):
            truth = tokenizer.decode([tokens[position]])
            if read[row, position] != tokens[position]:
                verdict = "found" if flagged[row, position] else "missed"
                other = tokenizer.decode([read[row, position]])
                marks[int(position)] = f"[{truth}->{other} {verdict}]"
            elif flagged[row, position]:
                marks[int(position)] = f"[{truth}?]"
        lines.append(render(tokens, batch["segment_ids"][row], marks, tokenizer))
    return lines


def render(tokens: Any, segment_ids: Any, marks: Mapping[int, str], tokenizer: Decoder) -> str:
    """Returns the text of a row with the tokens at some positions replaced by `marks`."""
    parts: list[str] = []
    run: list[int] = []
    for position in np.flatnonzero(segment_ids):
        if int(position) in marks:
            parts += [tokenizer.decode(run), marks[int(position)]]
            run = []
        else:
            run.append(int(tokens[position]))
    parts.append(tokenizer.decode(run))
    return " ".join(part.strip() for part in parts if part.strip())


def _corrupt(objective: Any, key: jax.Array, batch: Batch) -> Batch:
    keys = jax.random.split(key, batch["tokens"].shape[0])
    return jax.vmap(objective.corrupt)(keys, batch)
