"""How likely a model finds what follows a context; the last words of texts."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lmjax.convert.pretrained import Pretrained
from lmjax.data.files import BadRowError, find_files, form_of, read_lines
from lmjax.data.rows import Notes, OnBadRows, Row, RowsConfig, column, parse_rows, raw_rows
from lmjax.data.tokenizers import Tokenizer
from lmjax.errors import ConfigError
from lmjax.evaluation.minimal_pairs import Share
from lmjax.evaluation.scoring import (
    Method,
    Passage,
    PassageScores,
    methods_of,
    passage_scores,
    room,
)

_SPACE = " \t\r\n"


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


def split_last_word(text: str) -> tuple[str, str]:
    """(context, last word), the white space between them with the word, that at the end left out.

    Raises:
      BadRowError: there are not two words.
    """
    text = text.rstrip(_SPACE)
    context = text[: 1 + max(text.rfind(space) for space in _SPACE)].rstrip(_SPACE)
    if not context.strip():
        raise BadRowError("no word before the last one")
    return context, text[len(context) :]


def read_last_words(
    spec: str, text_feature: str, on_bad_rows: OnBadRows, notes: Notes
) -> list[Row]:
    """Texts without their last words, and these: {'context', 'word', 'where'}, as of LAMBADA.

    Args:
      spec: rows as `lmjax.data.rows` reads them, or .txt files with a text a line.
      text_feature: the column that holds the text.
      notes: takes what is skipped.

    Raises:
      ConfigError: nothing there, or bad rows that are not to be skipped.
    """

    def parse(values: Row) -> Row:
        text = column(values, text_feature, "text_feature", "--")
        if not isinstance(text, str):
            raise BadRowError(f"no text in column '{text_feature}'")
        context, word = split_last_word(text)
        return {"context": context, "word": word}

    def lines() -> Iterator[tuple[str, Row]]:
        for path in find_files(spec, where, lambda path: form_of(path) == ".txt"):
            for number, line in read_lines(path, where):
                if line.strip():
                    yield f"{path.name}:{number}", {text_feature: line}

    where = "--data"
    rows = RowsConfig(train=spec)
    raw = lines() if form_of(spec) == ".txt" else raw_rows(spec, "test", rows, where)
    remedy = "--on_bad_rows=skip leaves them out"
    return parse_rows(raw, parse, on_bad_rows, spec, where, notes, remedy)


@dataclasses.dataclass(frozen=True, eq=False)
class LastWords:
    """What a model makes of the last words of texts.

    Attributes:
      right: [texts] bool: each token of the word is the likeliest in its place.
      nats: [texts] float64: the negative log-probability of the word.
      cut: texts whose beginning did not fit and was left out.
    """

    right: np.ndarray
    nats: np.ndarray
    cut: int

    @property
    def share(self) -> Share:
        return Share(float(self.right.sum()), len(self.right))

    @property
    def perplexity(self) -> float:
        """Of a word."""
        return float(np.exp(self.nats.mean()))


def last_words(
    model: Pretrained, pairs: Sequence[tuple[str, str]], method: Method | None = None
) -> LastWords:
    """Scores (context, last word) of each text.

    A causal model's word is right where greedy decoding writes it; by `pseudo`, where each of its
    tokens is the likeliest beside the others of the word.

    Raises:
      ConfigError: a discriminator, which predicts no words; a word that does not fit.
    """
    method = method or methods_of(model)[0]
    if method == "discriminator":
        raise ConfigError("--method: a discriminator predicts no words; pseudo asks the generator")
    found, cut = continuation_scores(model, pairs, method)
    return LastWords(
        right=np.array([scores.greedy.all() for scores in found]),
        nats=np.array([-scores.logs.sum() for scores in found]),
        cut=int(cut.sum()),
    )
