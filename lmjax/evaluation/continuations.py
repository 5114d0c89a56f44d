"""How likely a model finds what follows a context."""

from collections.abc import Sequence

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
    if model.tokenizer is None:
        raise ConfigError("a model without a tokenizer reads no text")
    passages = encode(model.tokenizer, pairs)
    fits = room(model, method)
    cut = np.zeros(len(pairs), bool)
    for i, (ids, first) in enumerate(passages):
        if first == len(ids):
            raise ConfigError(f"a continuation has no token: {pairs[i][1]!r}")
        if fits is not None and len(ids) > fits:
            if len(ids) - first > fits:
                raise ConfigError(
                    f"a continuation of {len(ids) - first} tokens does not fit the position"
                    f" table, which has room for {fits}: {pairs[i][1][:60]!r}"
                )
            passages[i] = Passage(ids[-fits:], first - (len(ids) - fits))
            cut[i] = True
    return passage_scores(model, passages, method), cut
