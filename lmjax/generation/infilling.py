"""Text generation with masked models: by confidence, in rounds, by Gibbs or ancestral sampling.

A masked model, or XLNet's query stream, predicts a masked token from all other tokens. Infilling
fills the masks of a prompt, or appends `max_new_tokens` masks if it has none. Filling by confidence
and mask-predict (Ghazvininejad et al. 2019 §3) search for a probable text; Gibbs sampling (Wang &
Cho 2019 §2) repeatedly samples from the conditional distributions. Ancestral sampling reverses a
masked diffusion (Sahoo et al. 2024, eq. 7): in `iterations` steps, each mask is replaced by a
sample at a random step. 'any_order' replaces `group_size` masks at a time, in a random order.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.convert.pretrained import Pretrained
from lmjax.data import batching
from lmjax.errors import ConfigError, require_finite
from lmjax.generation.logits import Filters
from lmjax.generation.outputs import Generated
from lmjax.generation.prompts import SMALLEST, Prompt
from lmjax.generation.settings import GenerationConfig
from lmjax.objectives.base import apply

_MOST_LOGITS = 1 << 24  # per batch; several float32 copies exist at once


def infill(
    model: Pretrained, prompts: Sequence[Prompt], config: GenerationConfig
) -> list[Generated]:
    """Returns the whole texts, with ids and log-probabilities of the masks.

    A log-probability is conditioned on the text at the time when its token was chosen; they do
    not form a joint distribution.

    Raises:
      ConfigError: the model has no tokenizer, a setting applies only to left-to-right generation,
        or a text is longer than the position table.
    """
    _check(model, config)
    network, params = model.network.part(model.params, "generator")
    model = dataclasses.replace(model, network=network, params=params)
    begin, end = ([model.role_id(role) for role in roles] for roles in network.frame)
    mask = model.role_id("mask")
    rows = []
    for prompt in prompts:
        ids = prompt.ids
        if not (ids == mask).any():
            ids = np.append(ids, [mask] * config.max_new_tokens)
        rows.append(np.concatenate([begin, ids, end]).astype(np.int32))
    longest, room = max(map(len, rows)), getattr(model.config, "max_length", 1 << 30)
    if longest > room:
        raise ConfigError(
            f"max_new_tokens: a text of {longest} tokens exceeds the {room} rows of the position"
            " table; reduce it, or shorten the prompt"
        )
    length = min(batching.power_of_two(longest, SMALLEST), room)
    most = max(1, _MOST_LOGITS // (length * model.config.vocab_size))
    count = min(batching.power_of_two(len(rows)), most)
    texts: list[Generated] = []
    for start in range(0, len(rows), count):
        keys = [prompt.key for prompt in prompts[start : start + count]]
        texts += _infill_rows(model, rows[start : start + count], keys, count, length, config)
    return texts


def _infill_rows(
    model: Pretrained,
    rows: Sequence[np.ndarray],
    keys: Sequence[jax.Array],
    count: int,
    length: int,
    config: GenerationConfig,
) -> list[Generated]:
    """Fills up to `count` rows, padded to `count`, each with its key."""
    tokenizer, network = model.tokenizer, model.network
    assert tokenizer is not None
    mask = model.role_id("mask")
    tokens = batching.stack(rows, length, model.pad_id, rows=count)
    real = batching.real([len(ids) for ids in rows], length, rows=count)
    filled, log_probs = _fill(
        network,
        model.params,
        Filters.of(config),
        *(tokens, real, jnp.stack([*keys, *[keys[0]] * (count - len(keys))])),
        *(np.int32(mask), _forbidden(model), np.int32(config.iterations)),
        np.int32(config.group_size),
        how=config.infill,
    )
    filled, log_probs = np.asarray(filled), np.asarray(log_probs)
    texts = []
    for row, ids in enumerate(rows):
        at = np.flatnonzero(ids == mask)
        require_finite(log_probs[row, at], f"generate: log-probabilities in {model.named(ids)}")
        before, behind = map(len, network.frame)
        text = tokenizer.decode(filled[row, before : len(ids) - behind])
        made = Generated(text, filled[row, at], log_probs[row, at], "length", follows=False)
        texts.append(made)
    return texts


def _check(model: Pretrained, config: GenerationConfig) -> None:
    if model.tokenizer is None:
        raise ConfigError("model: infilling needs a tokenizer, which defines the mask's id")
    off = GenerationConfig()
    for name in (
        *("repetition_penalty", "presence_penalty", "no_repeat_ngram_size", "num_beams"),
        *("penalty_alpha", "stop", "choices", "regex", "json_schema"),
    ):
        if getattr(config, name) != getattr(off, name):
            raise ConfigError(
                f"{name}: applies to left-to-right generation, but"
                f" {type(model.network).__name__} fills masks; unset it"
            )


def _forbidden(model: Pretrained) -> np.ndarray:
    """Returns [vocab] bool: special tokens, which represent no text, and rows without a token."""
    tokenizer = model.tokenizer
    assert tokenizer is not None
    gone = np.arange(model.config.vocab_size) >= tokenizer.size
    for role, index in tokenizer.roles.items():
        if role != "unk":
            gone[index : index + 1] = True
    return gone


@functools.partial(jax.jit, static_argnums=0, static_argnames="how")
def _fill(
    network: Any,
    params: Any,
    filters: Filters,
    tokens: jax.Array,
    real: jax.Array,
    keys: jax.Array,
    mask: jax.Array,
    forbidden: jax.Array,
    iterations: jax.Array,
    group_size: jax.Array,
    *,
    how: str,
) -> tuple[jax.Array, jax.Array]:
    """Returns tokens and log-probabilities [rows, length]; 0 where there was no mask."""
    rows, length = tokens.shape
    open_ = tokens == mask
    masks = open_.sum(1)

    def read(tokens: jax.Array) -> jax.Array:
        """Returns log-probabilities [rows, length, vocab]."""
        inputs = network.config.inputs(tokens, jnp.zeros_like(tokens), real)
        logits = apply(network, params, inputs, mask, method="fill")
        return jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)

    def place_keys(step: jax.Array) -> jax.Array:
        """Returns [rows, length] keys that do not depend on the length of the rows."""
        own = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
        each = jax.vmap(jax.random.fold_in, (None, 0))
        return jax.vmap(each, (0, None))(own, jnp.arange(length))

    def choose(log_p: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Chooses a token for every position, [rows, length], with its log-probability."""
        vocab = log_p.shape[-1]
        shaped = jnp.where(forbidden, -jnp.inf, log_p).reshape(-1, vocab)
        chosen = filters.choose(place_keys(2 * step).reshape(-1), shaped).reshape(rows, length)
        return chosen, jnp.take_along_axis(log_p, chosen[..., None], axis=-1)[..., 0]

    def most_confident(step: jax.Array, carry: Any) -> Any:
        tokens, log_probs = carry
        chosen, log_p = choose(read(tokens), step)
        masked = tokens == mask
        place = jnp.argmax(jnp.where(masked, log_p, -jnp.inf), axis=1)
        now = masked & (jnp.arange(length) == place[:, None])
        return jnp.where(now, chosen, tokens), jnp.where(now, log_p, log_probs)

    def predict_again(step: jax.Array, carry: Any) -> Any:
        tokens, log_probs = carry
        # n = N (T - t) / T masks, the least probable (eq. 3-4); all of them in the first round.
        again = jnp.floor(masks * (iterations - step) / iterations).astype(jnp.int32)
        order = jnp.argsort(jnp.where(open_, log_probs, jnp.inf), axis=1)
        rank = jnp.argsort(order, axis=1)
        now = open_ & ((step == 0) | (rank < again[:, None]))
        tokens = jnp.where(now, mask, tokens)
        chosen, log_p = choose(read(tokens), step)
        return jnp.where(now, chosen, tokens), jnp.where(now, log_p, log_probs)

    def draw_again(step: jax.Array, carry: Any) -> Any:
        tokens, log_probs = carry
        # Uses keys that `choose` does not use.
        noise = jax.vmap(jax.vmap(jax.random.uniform))(place_keys(2 * step + 1))
        place = jnp.argmax(jnp.where(open_, noise, -1.0), axis=1)
        now = open_ & (jnp.arange(length) == place[:, None])
        # A sweep has as many draws as the row has masks; other rows may have more.
        now &= (step < masks * iterations)[:, None]
        chosen, log_p = choose(read(jnp.where(now, mask, tokens)), step)
        return jnp.where(now, chosen, tokens), jnp.where(now, log_p, log_probs)

    def unmask(step: jax.Array, carry: Any) -> Any:
        tokens, log_probs = carry
        # The time falls from t to s in equal steps, and a mask is replaced with probability
        # (t - s) / t. Uses keys that `choose` does not use.
        noise = jax.vmap(jax.vmap(jax.random.uniform))(place_keys(2 * step + 1))
        now = (tokens == mask) & open_ & (noise * (iterations - step) < 1)
        chosen, log_p = choose(read(tokens), step)
        return jnp.where(now, chosen, tokens), jnp.where(now, log_p, log_probs)

    def next_group(step: jax.Array, carry: Any) -> Any:
        tokens, log_probs = carry
        # The same order in every step. Uses keys that `choose` does not use.
        noise = jax.vmap(jax.vmap(jax.random.uniform))(place_keys(jnp.int32(1)))
        order = jnp.argsort(jnp.where(open_, noise, 1.0), axis=1)
        now = open_ & (jnp.argsort(order, axis=1) // group_size == step)
        chosen, log_p = choose(read(tokens), step)
        return jnp.where(now, chosen, tokens), jnp.where(now, log_p, log_probs)

    start = tokens, jnp.zeros(tokens.shape)
    most = masks.max()
    if how == "confidence":
        return jax.lax.fori_loop(0, most, most_confident, start)
    if how == "mask_predict":
        return jax.lax.fori_loop(0, iterations, predict_again, start)
    if how == "any_order":
        return jax.lax.fori_loop(0, -(-most // group_size), next_group, start)
    if how == "ancestral":
        return jax.lax.fori_loop(0, iterations, unmask, start)
    # Gibbs sampling starts from all masks; positions that were never drawn are filled at the end.
    tokens, log_probs = jax.lax.fori_loop(0, most * iterations, draw_again, start)
    left = (tokens == mask).sum(1).max()
    return jax.lax.fori_loop(0, left, most_confident, (tokens, log_probs))
