"""How likely a model finds texts, token by token, each family in its own way.

`causal` (GPT): log p of each token given those before it, the first given the begin of a document.
`pseudo` (BERT, ELECTRA's generator, XLNet): log p of each token given all others, one at a time
(Salazar et al. 2020); their sum is no log p of the text.
`pseudo_within_word` (the same): the later tokens of its word are hidden with a token, so that the
rest of a long word does not give it away (Kauf & Ivanova 2023).
`left_to_right` (XLNet): log p of each token given those before it, all in one pass of the query
stream under the factorisation order 1, 2, 3, ...
`discriminator` (ELECTRA): log p that a token is original, for each.
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
_BATCH, _MULTIPLE = 256, 8  # rows of a batch, and what its length is a multiple of
# Of a batch: what attention, and what logits in float32, may take.
_MOST_TOKENS, _MOST_LOGITS = 1 << 14, 1 << 26


class Passage(NamedTuple):
    """Token ids that are read, [tokens], and the index from which on they are scored."""

    ids: np.ndarray
    first: int = 0


class PassageScores(NamedTuple):
    """Of the tokens of a passage that are scored: [scored] each.

    Attributes:
      logs: natural logarithms, float64.
      greedy: no token would have been likelier; of a discriminator: held to be original.
    """

    logs: np.ndarray
    greedy: np.ndarray


class _Row(NamedTuple):
    """What is read at once: ids, which text they are of, and which position is asked for."""

    text: int
    tokens: np.ndarray
    position: int = -1  # -1: all that are scored
    until: int = 0  # positions from `position` up to this one are hidden


def methods_of(model: Pretrained) -> tuple[Method, ...]:
    """The ways to score by this model, its family's own first.

    Raises:
      ConfigError: there is none.
    """
    methods = getattr(model.network, "score_methods", ())
    if not methods or model.tokenizer is None:
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
    method = _checked(model, method)
    assert model.tokenizer is not None
    passages = [Passage(ids) for ids in model.tokenizer.encode_batch(texts)]
    return [scores.logs for scores in passage_scores(model, passages, method)]


def room(model: Pretrained, method: Method | None = None) -> int | None:
    """How many tokens of text a passage may have; None = any number."""
    _, _, begins, ends = _framed(model, _checked(model, method))
    limit = getattr(model.config, "max_length", None)
    return None if limit is None else limit - len(begins) - len(ends)


def passage_scores(
    model: Pretrained, passages: Sequence[Passage], method: Method | None = None
) -> list[PassageScores]:
    """As `token_scores`, of ids, some of which may be there to be read only.

    The first token of a passage begins a document (GPT) or is all there is on its left.
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
    # Others hide a token without writing the mask into the text.
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
    """The method, or the family's own."""
    known = methods_of(model)
    method = method or known[0]
    if method not in known:
        raise ConfigError(
            f"method: '{method}' is none of {type(model.network).__name__}'s: {', '.join(known)}"
        )
    return method


def _framed(model: Pretrained, method: Method) -> tuple[Network, Any, list[int], list[int]]:
    """The network with its parameters, and the ids that stand before and behind a passage."""
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
    """A row for the passage, or one for each token that is scored."""
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
    """Batches of rows of similar length that fit into memory, each with its number of rows."""

    def fitting(longest: int) -> int:
        length = batching.multiple_of(_MULTIPLE, longest)
        return min(_MOST_TOKENS // length, _MOST_LOGITS // (length * logits_per_token))

    lengths = [len(row.tokens) for row in rows]
    return [
        ([rows[i] for i in chosen], size)
        for chosen, size in batching.by_length(lengths, _BATCH, fitting)
    ]


def _arrays(rows: Sequence[_Row], size: int, pad: int) -> tuple[np.ndarray, ...]:
    """Tokens and real [size, length], positions and untils [size] of a batch."""
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
    """[batch, length] log p of each token given those before it; 0 for the first."""
    nowhere = jnp.zeros(len(tokens), jnp.int32)
    return _read(network, "causal", 0, params, tokens, real, nowhere, nowhere)[0]
