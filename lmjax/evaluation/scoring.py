"""How likely a model finds texts, token by token, each family in its own way.

`causal` (GPT): log p of each token given those before it, the first given the begin of a document.
`pseudo` (BERT, ELECTRA's generator, XLNet): log p of each token given all others, one at a time
(Salazar et al. 2020); their sum is no log p of the text.
`left_to_right` (XLNet): log p of each token given those before it, all in one pass of the query
stream under the factorisation order 1, 2, 3, ...
`discriminator` (ELECTRA): log p that a token is original, for each.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lmjax.convert.huggingface import single_network
from lmjax.convert.pretrained import Pretrained, inputs
from lmjax.errors import ConfigError
from lmjax.models.bert import BertForPreTraining
from lmjax.models.electra import Electra, ElectraDiscriminator, ElectraGenerator
from lmjax.models.gpt import Gpt
from lmjax.models.xlnet import Xlnet
from lmjax.nn.masks import padding, permutation
from lmjax.progress import track

Method = Literal["causal", "pseudo", "left_to_right", "discriminator"]
# The first is a family's own.
METHODS: dict[type, tuple[Method, ...]] = {
    Gpt: ("causal",),
    BertForPreTraining: ("pseudo",),
    Xlnet: ("left_to_right", "pseudo"),
    Electra: ("discriminator", "pseudo"),
    ElectraDiscriminator: ("discriminator",),
    ElectraGenerator: ("pseudo",),
}
_BATCH, _MULTIPLE = 256, 8


class _Row(NamedTuple):
    """What is read at once: ids, which text they are of, and which position is asked for."""

    text: int
    tokens: np.ndarray
    position: int  # -1: all that are scored


def methods_of(model: Pretrained) -> tuple[Method, ...]:
    """The ways to score by this model, its family's own first.

    Raises:
      ConfigError: there is none.
    """
    methods = METHODS.get(type(model.network))
    if methods is None or model.tokenizer is None:
        raise ConfigError(
            f"a {type(model.network).__name__} without a"
            f" {'tokenizer' if methods else 'language-model head'} gives texts no probability"
        )
    return methods


def token_scores(
    model: Pretrained, texts: Sequence[str], method: Method | None = None
) -> list[np.ndarray]:
    """Natural logarithms, one a token of each text; special tokens are read and not scored.

    Args:
      method: one of `methods_of(model)`; None = its family's own.

    Raises:
      ConfigError: the model has not that method, or a text does not fit its position table.
    """
    known = methods_of(model)
    method = method or known[0]
    if method not in known:
        raise ConfigError(
            f"method: '{method}' is none of {type(model.network).__name__}'s: {', '.join(known)}"
        )
    part = "discriminator" if method == "discriminator" else "generator"
    network, params = single_network(model.network, model.params, part)
    assert model.tokenizer is not None
    roles = model.tokenizer.roles
    begins, ends = [roles["cls"]], [roles["sep"]]
    if isinstance(network, Gpt):
        begins, ends = [model.token_ids.get("bos_token_id", roles["eod"])], []
    elif isinstance(network, Xlnet):
        begins, ends = [], []
    encoded = model.tokenizer.encode_batch(texts)
    longest = max((len(ids) for ids in encoded), default=0) + len(begins) + len(ends)
    limit = getattr(network.config, "max_length", None)
    if limit is not None and longest > limit:
        raise ConfigError(
            f"a text of {longest} tokens does not fit the {limit} rows of the position table"
        )
    one_by_one = method == "pseudo"
    rows = [
        _Row(i, np.array([*begins, *ids, *ends], np.int32), position)
        for i, ids in enumerate(encoded)
        for position in (range(len(begins), len(begins) + len(ids)) if one_by_one else (-1,))
        if len(ids)
    ]
    scores = [np.zeros(len(ids)) for ids in encoded]
    read = _READERS[method]
    for chosen, tokens, real, positions in track(
        _batches(rows, roles["pad"]), f"scoring by {method}", -(-len(rows) // _BATCH)
    ):
        found = np.asarray(read(network, roles["mask"], params, tokens, real, positions))
        for row, values in zip(chosen, found, strict=False):
            first = len(begins)
            if one_by_one:
                scores[row.text][row.position - first] = values[0]
            else:
                scores[row.text][:] = values[first : first + len(scores[row.text])]
    return scores


def _batches(
    rows: Sequence[_Row], pad: int
) -> Iterator[tuple[list[_Row], jax.Array, jax.Array, jax.Array]]:
    """(rows, tokens, real, positions) of rows of like length, filled up with the first one."""
    order = sorted(rows, key=lambda row: len(row.tokens))
    for start in range(0, len(order), _BATCH):
        chosen = order[start : start + _BATCH]
        length = -(-len(chosen[-1].tokens) // _MULTIPLE) * _MULTIPLE
        tokens = np.full((_BATCH, length), pad, np.int32)
        real = np.zeros((_BATCH, length), bool)
        positions = np.zeros(_BATCH, np.int32)
        for i in range(_BATCH):
            row = chosen[i] if i < len(chosen) else chosen[0]
            tokens[i, : len(row.tokens)] = row.tokens
            real[i, : len(row.tokens)] = True
            positions[i] = row.position
        yield chosen, jnp.asarray(tokens), jnp.asarray(real), jnp.asarray(positions)


def _of_targets(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """log softmax(logits)[targets]. logits: [..., vocab_size]; targets: [...]."""
    logs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return jnp.take_along_axis(logs, targets[..., None], axis=-1)[..., 0]


def _causal(
    network: nn.Module, mask: int, params: Any, tokens: Any, real: Any, positions: Any
) -> jax.Array:
    return causal_scores(network, params, tokens, real)


@functools.partial(jax.jit, static_argnums=0)
def causal_scores(network: nn.Module, params: Any, tokens: Any, real: Any) -> jax.Array:
    """[batch, length] log p of each token given those before it; 0 for the first."""
    logits: Any = network.apply(
        {"params": params}, *inputs(network, tokens, jnp.zeros_like(tokens), real)
    )
    return jnp.pad(_of_targets(logits[:, :-1], tokens[:, 1:]), ((0, 0), (1, 0)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _pseudo(
    network: nn.Module, mask: int, params: Any, tokens: Any, real: Any, positions: Any
) -> jax.Array:
    """[batch, 1], of the token at `positions`."""
    where = positions[:, None]
    targets = jnp.take_along_axis(tokens, where, axis=1)
    if isinstance(network, Xlnet):
        # No one sees the target, not the content stream either: through the others' states
        # it would be seen.
        hidden = jnp.arange(tokens.shape[1])[None] == where
        order = permutation(jnp.zeros((1, 1), jnp.int32), jnp.where(hidden, 0, -1))
        return _of_targets(_query_stream(network, params, tokens, real, order, where), targets)
    masked = jnp.put_along_axis(tokens, where, mask, axis=1, inplace=False)
    arguments = inputs(network, masked, jnp.zeros_like(tokens), real)
    logits: Any = network.apply({"params": params}, *arguments[:-1], where)
    return _of_targets(logits[0] if isinstance(logits, tuple) else logits, targets)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _left_to_right(
    network: Xlnet, mask: int, params: Any, tokens: Any, real: Any, positions: Any
) -> jax.Array:
    place = jnp.arange(tokens.shape[1])[None]
    every = jnp.broadcast_to(place, tokens.shape)
    logits = _query_stream(network, params, tokens, real, permutation(place, place), every)
    return _of_targets(logits, tokens)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _discriminator(
    network: nn.Module, mask: int, params: Any, tokens: Any, real: Any, positions: Any
) -> jax.Array:
    logits: Any = network.apply(
        {"params": params}, *inputs(network, tokens, jnp.zeros_like(tokens), real)
    )
    return jax.nn.log_sigmoid(-logits)


def _query_stream(
    network: Xlnet, params: Any, tokens: Any, real: Any, order: Any, targets: Any
) -> jax.Array:
    """Logits of the query stream at `targets` [batch, n]."""

    def read(module: Xlnet) -> jax.Array:
        mask = order & padding(real.astype(jnp.int32))
        output, _ = module(tokens, jnp.zeros_like(tokens), mask, None, targets)
        return module.decode(output)

    logits: Any = network.apply({"params": params}, method=read)
    return logits


_READERS: dict[str, Callable[..., jax.Array]] = {
    "causal": _causal,
    "pseudo": _pseudo,
    "left_to_right": _left_to_right,
    "discriminator": _discriminator,
}
