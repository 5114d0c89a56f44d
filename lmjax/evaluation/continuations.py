"""How likely a model finds what follows a context."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lmjax.convert.pretrained import Pretrained
from lmjax.data.tokenizers import Tokenizer
from lmjax.errors import ConfigError
from lmjax.evaluation.scoring import Method, Passage, PassageScores, passage_scores, room


def encode(tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]) -> list[Passage]:
    """Passages of (context, continuation), tokenized as one text.

    White space at a context's end goes with the continuation, whose first token it belongs to
    in byte-level tokenizers. Where a token reaches over the border, it is of the continuation.
    """
    heads = [context.rstrip() for context, _ in pairs]
    read = tokenizer.encode_batch(heads)
    whole = tokenizer.encode_batch([context + following for context, following in pairs])
    passages = []
    for head, ids in zip(read, whole, strict=True):
        shorter = min(len(head), len(ids))
        differs = np.flatnonzero(head[:shorter] != ids[:shorter])
        passages.append(Passage(ids, int(differs[0]) if len(differs) else shorter))
    return passages


class Fitted(NamedTuple):
    """What a model can read of pairs.

    Attributes:
      passages: one a pair; empty of a pair that is too long.
      cut: [pairs] bool, the beginning of the context is left out.
      too_long: [pairs] bool, not even the continuation fits.
    """

    passages: list[Passage]
    cut: np.ndarray
    too_long: np.ndarray


def fit(
    model: Pretrained, pairs: Sequence[tuple[str, str]], method: Method | None = None
) -> Fitted:
    """Encodes (context, continuation) and leaves out what has no room in the position table.

    Raises:
      ConfigError: a continuation without a token.
    """
    if model.tokenizer is None:
        raise ConfigError("a model without a tokenizer reads no text")
    passages = encode(model.tokenizer, pairs)
    fits = room(model, method)
    cut, too_long = np.zeros((2, len(pairs)), bool)
    for i, (ids, first) in enumerate(passages):
        if first == len(ids):
            raise ConfigError(f"a continuation has no token: {pairs[i][1]!r}")
        if fits is not None and len(ids) > fits:
            too_long[i] = len(ids) - first > fits
            cut[i] = not too_long[i]
            kept = ids[:0] if too_long[i] else ids[-fits:]
            passages[i] = Passage(kept, max(0, first - (len(ids) - fits)))
    return Fitted(passages, cut, too_long)


def continuation_scores(
    model: Pretrained, pairs: Sequence[tuple[str, str]], method: Method | None = None
) -> tuple[list[PassageScores], np.ndarray]:
    """Scores of the continuations' tokens, and [pairs] bool: was the context cut on its left.

    Args:
      pairs: (context, continuation); where they do not fit the position table together, the
        beginning of the context is left out.

    Raises:
      ConfigError: a continuation without a token, or one that does not fit by itself.
    """
    passages, cut, too_long = fit(model, pairs, method)
    if too_long.any():
        text = pairs[int(np.argmax(too_long))][1]
        raise ConfigError(
            f"a continuation does not fit the position table, which has room for"
            f" {room(model, method)} tokens: {text[:60]!r}"
        )
    return passage_scores(model, passages, method), cut
