"""Per-token scores of texts, by one of six methods.

`causal` (GPT, n-grams): log p of each token given the preceding ones; the first token is
conditioned on the token that begins a document.
`pseudo` (BERT, ELECTRA's generator, XLNet): log p of each token given all others, one at a time
(Salazar et al. 2020). The sum is not a log-probability of the text.
`pseudo_within_word` (same families): also hides the later tokens of the same word, so that they do
not give the token away (Kauf & Ivanova 2023).
`left_to_right` (XLNet): log p of each token given the preceding ones, in one pass of the query
stream with the factorization order 1, 2, 3, ...
`discriminator` (ELECTRA): log p that each token is original.
`stupid_backoff` (n-grams): as `causal`, but scores of a position do not sum to one.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.convert.pretrained import Pretrained
from lmjax.data import batching
from lmjax.errors import ConfigError, require_finite
from lmjax.models.network import Network, Scores, ScoringMethod
from lmjax.objectives.base import apply
from lmjax.progress import track

Method = ScoringMethod
_ONE_BY_ONE = ("pseudo", "pseudo_within_word")
_BATCH, _MULTIPLE = 256, 4  # the most rows of a batch; lengths are multiples of _MULTIPLE
# Limits of a batch: tokens bound the memory of attention, logits the memory of float32 outputs.
_MOST_TOKENS, _MOST_LOGITS = 1 << 14, 1 << 26


class Passage(NamedTuple):
    """Token ids [tokens], and the index of the first one to score."""

    ids: np.ndarray
    first: int = 0


class PassageScores(NamedTuple):
    """Scores of a passage, [scored tokens] each.

    Attributes:
      logs: natural logarithms, float64.
      greedy: bool, whether no other token is likelier; for a discriminator, whether it predicts
        that the token is original.
    """

    logs: np.ndarray
    greedy: np.ndarray


class _Row(NamedTuple):
    """An input row: the index of its text, token ids, and the position to score."""

    text: int
    tokens: np.ndarray
    position: int = -1  # -1 scores all positions
    until: int = 0  # positions in [position, until) are hidden


def methods_of(model: Pretrained) -> tuple[Method, ...]:
    """Returns the scoring methods that a model supports, its default first.

    Raises:
      ConfigError: the model supports none.
    """
    methods = getattr(model.network, "score_methods", ())
    if not methods or model.tokenizer is None:
        raise ConfigError(
            f"a {type(model.network).__name__} without a"
            f" {'tokenizer' if methods else 'language-model head'} cannot score texts"
        )
    return methods


def token_scores(
    model: Pretrained, texts: Sequence[str], method: Method | None = None
) -> list[np.ndarray]:
    """Scores each token of each text; special tokens are read but not scored.

    Args:
      method: one of `methods_of(model)`; None = the first of them.

    Returns:
      For each text, [tokens] natural logarithms.

    Raises:
      ConfigError: the model lacks the method, or a text does not fit its position table.
    """
    method = _checked(model, method)
    assert model.tokenizer is not None
    passages = [Passage(ids) for ids in model.tokenizer.encode_batch(texts)]
    return [scores.logs for scores in passage_scores(model, passages, method)]


def room(model: Pretrained, method: Method | None = None) -> int | None:
    """Returns the most tokens of text in a passage; None = unlimited."""
    _, _, begins, ends = _framed(model, _checked(model, method))
    limit = getattr(model.config, "max_length", None)
    return None if limit is None else limit - len(begins) - len(ends)


def passage_scores(
    model: Pretrained, passages: Sequence[Passage], method: Method | None = None
) -> list[PassageScores]:
    """Scores token ids as `token_scores`; tokens before `Passage.first` are context only.

    The first token of a passage begins a document (GPT) or has no left context.
    """
    method = _checked(model, method)
    network, params, begins, ends = _framed(model, method)
    longest = max((len(p.ids) for p in passages), default=0)
    fits = room(model, method)
    if fits is not None and longest > fits:
        rows, special = fits + len(begins) + len(ends), len(begins) + len(ends)
        raise ConfigError(
            f"a text of {longest + special} tokens does not fit the {rows} rows of the position"
            " table"
        )
    assert model.tokenizer is not None
    for passage in passages:
        model.check_ids(passage.ids, "model")
    one_by_one = method in _ONE_BY_ONE
    # Models that do not fill masks hide a token without replacing it.
    mask = model.role_id("mask") if one_by_one and network.fills_masks else 0
    starts_word = None
    if method == "pseudo_within_word":
        starts_word = model.tokenizer.vocabulary(np.zeros(model.tokenizer.size)).starts_word
    listed = [
        row
        for i, passage in enumerate(passages)
        if passage.first < len(passage.ids)
        for row in _rows(i, passage, begins, ends, one_by_one, starts_word)
    ]
    found = [
        PassageScores(np.zeros(len(p.ids) - p.first), np.zeros(len(p.ids) - p.first, bool))
        for p in passages
    ]
    all_positions = not one_by_one and method != "discriminator"
    batches = _batches(listed, model.config.vocab_size if all_positions else 1)
    for chosen, size in track(batches, f"scoring by {method}", len(batches)):
        arrays = _arrays(chosen, size, model.pad_id)
        logs, greedy = jax.device_get(_read(network, method, mask, params, *arrays))
        for row, values, best in zip(chosen, logs, greedy, strict=False):
            passage, scores = passages[row.text], found[row.text]
            if one_by_one:
                at = row.position - len(begins) - passage.first
                scores.logs[at], scores.greedy[at] = values[0], best[0]
            else:
                here = slice(len(begins) + passage.first, len(begins) + len(passage.ids))
                scores.logs[:], scores.greedy[:] = values[here], best[here]
    for passage, scores in zip(passages, found, strict=True):
        if not np.isfinite(scores.logs).all():
            require_finite(scores.logs, f"scores of {model.named(passage.ids)}")
    return found


def _checked(model: Pretrained, method: Method | None) -> Method:
    """Validates the method; None selects the default."""
    known = methods_of(model)
    method = method or known[0]
    if method not in known:
        raise ConfigError(
            f"method: {type(model.network).__name__} does not support '{method}'; use one of"
            f" {', '.join(known)}"
        )
    return method


def _framed(model: Pretrained, method: Method) -> tuple[Network, Any, list[int], list[int]]:
    """Returns the network, its parameters, and the special tokens before and after a passage."""
    part = "discriminator" if method == "discriminator" else "generator"
    network, params = model.network.part(model.params, part)
    begins, ends = (
        [model.begin_id if role == "begin" else model.role_id(role) for role in roles]
        for roles in network.frame
    )
    return network, params, begins, ends


def _rows(
    text: int,
    passage: Passage,
    begins: list[int],
    ends: list[int],
    one_by_one: bool,
    starts_word: np.ndarray | None,
) -> Iterator[_Row]:
    """Yields one row for the passage, or one per scored token."""
    tokens = np.array([*begins, *passage.ids, *ends], np.int32)
    if not one_by_one:
        yield _Row(text, tokens)
        return
    for at in range(passage.first, len(passage.ids)):
        until = at + 1
        while (
            starts_word is not None
            and until < len(passage.ids)
            and not starts_word[passage.ids[until]]
        ):
            until += 1
        yield _Row(text, tokens, at + len(begins), until + len(begins))


def _batches(rows: Sequence[_Row], logits_per_token: int) -> list[tuple[list[_Row], int]]:
    """Groups rows of similar length into batches that fit into memory.

    Returns:
      For each batch its rows, and the number of rows after padding.
    """

    def fitting(longest: int) -> int:
        length = batching.multiple_of(_MULTIPLE, longest)
        return min(_MOST_TOKENS // length, _MOST_LOGITS // (length * logits_per_token))

    lengths = [len(row.tokens) for row in rows]
    return [
        ([rows[i] for i in chosen], size)
        for chosen, size in batching.by_length(lengths, _BATCH, fitting)
    ]


def _arrays(rows: Sequence[_Row], size: int, pad: int) -> tuple[np.ndarray, ...]:
    """Returns tokens and real [size, length], positions and untils [size] of a batch."""
    lengths = [len(row.tokens) for row in rows]
    length = batching.multiple_of(_MULTIPLE, max(lengths))
    hidden = [np.array([row.position, row.until], np.int32) for row in rows]
    return (
        batching.stack([row.tokens for row in rows], length, pad, rows=size),
        batching.real(lengths, length, rows=size),
        *batching.stack(hidden, rows=size).T,
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _read(
    network: Any,
    method: Method,
    mask: int,
    params: Any,
    tokens: Any,
    real: Any,
    positions: Any,
    untils: Any,
) -> Scores:
    inputs = network.config.inputs(tokens, jnp.zeros_like(tokens), real)
    found: Scores = apply(network, params, method, inputs, mask, positions, untils, method="score")
    return found


def causal_scores(network: Network, params: Any, tokens: Any, real: Any) -> jax.Array:
    """Returns [batch, length] log p of each token given the preceding ones; 0 for the first."""
    nowhere = jnp.zeros(len(tokens), jnp.int32)
    return _read(network, "causal", 0, params, tokens, real, nowhere, nowhere)[0]
