"""Speculative decoding (Leviathan et al. 2023, Chen et al. 2023).

A small model drafts several tokens, and the model reads them in one pass. A token x from the
draft's distribution q is accepted with probability min(1, p(x) / q(x)). The first rejected token is
replaced by a sample from max(p - q, 0), normalized; if all are accepted, one more is drawn from p.
The text has exactly the model's distribution, for any draft. The same temperature and filters apply
to both distributions. At temperature 0 the text is that of greedy search.
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
from lmjax.generation.outputs import Generated, finish
from lmjax.generation.prompts import Prompt, check_room, end_of_text, left_padded
from lmjax.generation.settings import GenerationConfig
from lmjax.nn.layers import sample_categorical
from lmjax.objectives.base import apply


@flax.struct.dataclass
class State:
    """The state of one text: as `sampling.State` with one row, and the caches of both models.

    Attributes:
      kept, draft_kept: keys and values of the tokens before slot - 1. Later slots contain rejected
        drafts, which are overwritten before they are read.
      drafted, accepted: [] int, number of verified and of accepted draft tokens.
    """

    tokens: jax.Array
    real: jax.Array
    log_probs: jax.Array
    slot: jax.Array
    done: jax.Array
    kept: Any
    draft_kept: Any
    drafted: jax.Array
    accepted: jax.Array


def check_draft(model: Pretrained, draft: Pretrained, config: GenerationConfig) -> None:
    """Checks that both models fit together and that the settings work with a draft.

    Raises:
      ConfigError: a model has no cache, the tokenizers differ, or a setting is not supported.
    """
    for name, one in (("model", model), ("draft", draft)):
        if not one.network.keeps_cache:
            raise ConfigError(
                f"{name}: {type(one.network).__name__} has no key-value cache, which speculative"
                " decoding needs; use a GPT"
            )
    vocab, draft_vocab = (one.config.vocab_size for one in (model, draft))
    prints = {one.tokenizer.fingerprint for one in (model, draft) if one.tokenizer}
    if vocab != draft_vocab or len(prints) > 1:
        raise ConfigError(
            f"draft: its tokenizer differs from the model's ({draft_vocab} and {vocab} tokens)"
        )
    off = GenerationConfig()
    for name in (
        *("repetition_penalty", "presence_penalty", "no_repeat_ngram_size", "num_beams"),
        *("penalty_alpha", "choices", "regex", "json_schema"),
    ):
        if getattr(config, name) != getattr(off, name):
            raise ConfigError(f"{name}: not supported with a draft model; remove one of the two")


def speculate(
    model: Pretrained, draft: Pretrained, prompts: Sequence[Prompt], config: GenerationConfig
) -> list[Generated]:
    """Generates the texts, one prompt at a time.

    Raises:
      ConfigError: a text does not fit both position tables.
    """
    check_draft(model, draft, config)
    eos = end_of_text(model, config)
    for one in (model, draft):
        check_room(one, prompts, config)
    texts = []
    for prompt in prompts:
        # The last round may draft more tokens than requested.
        padded = left_padded([prompt], config.max_new_tokens + config.draft_tokens + 1)
        state = _speculate(
            (model.network, draft.network),
            (model.params, draft.params),
            Filters.of(config),
            *(padded.tokens, padded.real, padded.keys[0]),
            *(np.int32(eos), np.int32(config.max_new_tokens)),
            width=padded.width,
            count=config.draft_tokens,
        )
        new = min(int(state.slot) - padded.width, config.max_new_tokens)
        made = finish(
            model.tokenizer,
            prompt,
            np.asarray(state.tokens[0, padded.width : padded.width + new]),
            np.asarray(state.log_probs[:new]),
            eos,
            config.stop,
            accepted=float(state.accepted) / max(1, int(state.drafted)),
        )
        texts.append(made)
    return texts


@functools.partial(jax.jit, static_argnums=0, static_argnames=("width", "count"))
def _speculate(
    networks: tuple[Any, Any],
    params: tuple[Any, Any],
    filters: Filters,
    tokens: jax.Array,
    real: jax.Array,
    key: jax.Array,
    eos: jax.Array,
    most: jax.Array,
    *,
    width: int,
    count: int,
) -> State:
    """Runs rounds of `count` drafted tokens until there are `most` or the document ends."""
    (network, draft), (own, drafts) = networks, params
    slots = tokens.shape[1]

    def read(network: Any, params: Any, *slots: Any) -> tuple[jax.Array, Any]:
        """Returns next-token logits [1, count, vocab] at some slots, and the updated cache."""
        hidden, kept = apply(network, params, *slots, method="read_slots")
        return apply(network, params, hidden, method="decode").astype(jnp.float32), kept

    def log_distribution(logits: jax.Array) -> jax.Array:
        """Converts [n, vocab] logits to the log-probabilities for sampling."""
        if filters.temperature is None:
            best = jnp.argmax(logits, axis=-1)
            one_hot = jnp.where(jnp.arange(logits.shape[-1]) == best[:, None], 0.0, -jnp.inf)
            return jnp.where(jnp.isnan(logits).any(-1, keepdims=True), jnp.nan, one_hot)
        return jax.nn.log_softmax(filters.shape(logits), axis=-1)

    def round_of(state: State) -> State:
        for_draft, for_accept, for_last = jax.random.split(jax.random.fold_in(key, state.slot), 3)

        def propose(i: jax.Array, carry: Any) -> Any:
            tokens, kept, log_q = carry
            # Two tokens at a time: after a fully accepted round, the draft has not read the last
            # drafted token.
            at = state.slot + i - 2
            new = jax.lax.dynamic_slice_in_dim(tokens, at, 2, axis=1)
            logits, kept = read(draft, drafts, new, state.real, at, kept)
            mine = log_distribution(logits[:, -1])
            token = sample_categorical(jax.random.fold_in(for_draft, i), mine[0])
            tokens = jax.lax.dynamic_update_slice(tokens, token[None, None], (0, state.slot + i))
            return tokens, kept, log_q.at[i].set(mine[0])

        vocab = network.config.vocab_size
        start = (state.tokens, state.draft_kept, jnp.zeros((count, vocab)))
        tokens, draft_kept, log_q = jax.lax.fori_loop(0, count, propose, start)

        new = jax.lax.dynamic_slice_in_dim(tokens, state.slot - 1, count + 1, axis=1)
        logits, kept = read(network, own, new, state.real, state.slot - 1, state.kept)
        logits = logits[0]
        log_p = log_distribution(logits)
        drafted = new[0, 1:]
        each = jnp.arange(count)
        ratio = jnp.exp(log_p[each, drafted] - log_q[each, drafted])
        good = jax.random.uniform(for_accept, (count,)) < ratio
        accepted = jnp.cumprod(good.astype(jnp.int32)).sum()
        # After the last drafted token there is no q, so the rest is all of p.
        q = jnp.pad(jnp.exp(log_q), ((0, 1), (0, 0)))[accepted]
        rest = jnp.maximum(jnp.exp(log_p[accepted]) - q, 0.0)
        # All 0 if p = q exactly, where only rounding can cause a rejection.
        rest = jnp.where(rest.sum() > 0, jnp.log(rest), log_p[accepted])
        last = sample_categorical(for_last, rest)

        tokens = jax.lax.dynamic_update_slice(tokens, last[None, None], (0, state.slot + accepted))
        written = jax.lax.dynamic_slice_in_dim(tokens, state.slot, count + 1, axis=1)[0]
        scored = jax.nn.log_softmax(logits, axis=-1)[jnp.arange(count + 1), written]
        # Otherwise drafts of a damaged model would all be rejected silently.
        scored = jnp.where(jnp.isnan(log_q).any(), jnp.nan, scored)
        ended = ((written == eos) & (jnp.arange(count + 1) <= accepted)).any()
        return State(
            tokens=tokens,
            real=state.real,
            log_probs=jax.lax.dynamic_update_slice(state.log_probs, scored, (state.slot - width,)),
            slot=state.slot + accepted + 1,
            done=ended | (state.slot + accepted + 1 - width >= most),
            kept=kept,
            draft_kept=draft_kept,
            drafted=state.drafted + jnp.minimum(accepted + 1, count),
            accepted=state.accepted + accepted,
        )

    def kept_of(network: Any, params: Any) -> Any:
        """Returns a network's cache after reading the prompt."""
        empty = network.empty_cache(1, slots)
        return read(network, params, tokens[:, :width], real, 0, empty)[1]

    state = State(
        tokens=tokens,
        real=real,
        log_probs=jnp.zeros(slots - width),
        slot=jnp.int32(width),
        done=jnp.bool_(False),
        kept=kept_of(network, own),
        draft_kept=kept_of(draft, drafts),
        drafted=jnp.int32(0),
        accepted=jnp.int32(0),
    )
    return jax.lax.while_loop(lambda state: ~state.done, round_of, state)
