"""What a network says comes next, the earlier tokens kept as it suits it.

GPT keeps the keys and values of every token (`nn.attention.Cache`). XLNet reads the text anew
for each token: the query stream at the next position predicts it from all before, the prompt
bidirectionally, as a factorisation order in which the prompt comes first and the rest follows
from left to right. The prompt's hidden states are the same whatever follows, so that the
probabilities of a text are those of one such evaluation of the whole.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.errors import ConfigError
from lmjax.models.gpt import Gpt
from lmjax.models.xlnet import Xlnet
from lmjax.nn.attention import Cache
from lmjax.nn.masks import padding, permutation


def check_reader(network: nn.Module) -> None:
    """Refuses what does not predict a next token.

    Raises:
      ConfigError: names the network.
    """
    if not isinstance(network, Gpt | Xlnet):
        raise ConfigError(
            f"model: {type(network).__name__} generates no text; give a GPT, XLNet, BERT or"
            " ELECTRA generator with its language-model head"
        )


def read_prompt(
    network: nn.Module, params: Any, tokens: jax.Array, real: jax.Array, width: int
) -> tuple[jax.Array, Any]:
    """Reads the first `width` slots.

    Args:
      tokens: [rows, slots] int.
      real: [rows, slots] bool, False at padding on the left.

    Returns:
      float32 logits [rows, vocab] of what comes next, and what is to be kept, arrays whose
      second axis is the rows.
    """
    if isinstance(network, Xlnet):
        return _read_anew(network, params, tokens, real, jnp.int32(width), width), None
    assert isinstance(network, Gpt)
    rows, slots = tokens.shape
    empty = Cache.empty(network.config.trunk, rows, slots)
    hidden, cache = read_slots(network, params, tokens[:, :width], real, 0, empty)
    return decode(network, params, hidden[:, -1]), cache


def read_token(
    network: nn.Module,
    params: Any,
    tokens: jax.Array,
    real: jax.Array,
    slot: jax.Array,
    kept: Any,
    width: int,
) -> tuple[jax.Array, Any]:
    """Reads the token in `slot`; the logits are of the next one."""
    if isinstance(network, Xlnet):
        return _read_anew(network, params, tokens, real, slot + 1, width), None
    new = jax.lax.dynamic_slice_in_dim(tokens, slot, 1, axis=1)
    hidden, kept = read_slots(network, params, new, real, slot, kept)
    return decode(network, params, hidden[:, -1]), kept


def read_slots(
    network: nn.Module, params: Any, new: jax.Array, real: jax.Array, start: Any, cache: Cache
) -> tuple[jax.Array, Cache]:
    """GPT's hidden states [rows, count, hidden_size] of `new` tokens from slot `start` on."""
    assert isinstance(network, Gpt)
    count = new.shape[1]
    slots = jnp.arange(real.shape[1])[None, None]
    mask = (slots <= start + jnp.arange(count)[None, :, None]) & real[:, None, :]
    positions = jnp.clip(jnp.cumsum(real, axis=1) - 1, 0, network.config.max_length - 1)
    here = jax.lax.dynamic_slice_in_dim(positions, start, count, axis=1)

    def extend(module: Gpt) -> tuple[jax.Array, Cache | None]:
        return module.encoder.extend(new, here, mask, None, cache, start)

    output: Any = network.apply({"params": params}, method=extend)
    return output


def decode(network: nn.Module, params: Any, hidden: jax.Array) -> jax.Array:
    """[..., hidden_size] -> float32 logits [..., vocab]."""
    logits: Any = network.apply({"params": params}, hidden, method="decode")
    return logits.astype(jnp.float32)


def _read_anew(
    network: Xlnet, params: Any, tokens: jax.Array, real: jax.Array, target: jax.Array, width: int
) -> jax.Array:
    slot = jnp.arange(tokens.shape[1])[None]
    # The prompt comes first, all of it at once; then slot after slot.
    key_place = jnp.maximum(slot - width + 1, 0)
    query_place = jnp.maximum(key_place, 1)
    mask = permutation(query_place, key_place) & padding(real)
    mapping = jnp.full((tokens.shape[0], 1), jnp.minimum(target, tokens.shape[1] - 1))
    hidden, _ = network.apply(
        {"params": params}, tokens, jnp.zeros_like(tokens), mask, None, mapping
    )
    return decode(network, params, hidden[:, 0])
