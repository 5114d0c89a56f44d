"""Scores of continuations given a context, and last-word prediction (LAMBADA)."""

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
    """Tokenizes each (context, continuation) as one text.

    White space at the end of a context counts as part of the continuation, as byte-level
    tokenizers attach it to the next token. So does a token that spans the boundary.
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
    """Pairs fitted to the position table.

    Attributes:
      passages: one per pair; empty if the pair is too long.
      cut: [pairs] bool, the context was truncated on the left.
      too_long: [pairs] bool, the continuation alone does not fit.
    """

    passages: list[Passage]
    cut: np.ndarray
    too_long: np.ndarray


def fit(
    model: Pretrained, pairs: Sequence[tuple[str, str]], method: Method | None = None
) -> Fitted:
    """Encodes (context, continuation) and truncates contexts to the position table.

    Raises:
      ConfigError: a continuation has no tokens.
    """
    if model.tokenizer is None:
        raise ConfigError("a model without a tokenizer cannot read texts")
    passages = encode(model.tokenizer, pairs)
    fits = room(model, method)
    cut, too_long = np.zeros((2, len(pairs)), bool)
    for i, (ids, first) in enumerate(passages):
        if first == len(ids):
            raise ConfigError(f"a continuation has no tokens: {pairs[i][1]!r}")
        if fits is not None and len(ids) > fits:
            too_long[i] = len(ids) - first > fits
            cut[i] = not too_long[i]
            kept = ids[:0] if too_long[i] else ids[-fits:]
            passages[i] = Passage(kept, max(0, first - (len(ids) - fits)))
    return Fitted(passages, cut, too_long)


def continuation_scores(
    model: Pretrained, pairs: Sequence[tuple[str, str]], method: Method | None = None
) -> tuple[list[PassageScores], np.ndarray]:
    """Scores the tokens of continuations.

    Args:
      pairs: (context, continuation). A context is truncated on the left if the pair does not fit
        the position table.

    Returns:
      The scores, and [pairs] bool: whether the context was truncated.

    Raises:
      ConfigError: a continuation has no tokens, or does not fit by itself.
    """
    passages, cut, too_long = fit(model, pairs, method)
    if too_long.any():
        text = pairs[int(np.argmax(too_long))][1]
        raise ConfigError(
            f"a continuation exceeds the {room(model, method)} tokens of the position table:"
            f" {text[:60]!r}"
        )
    return passage_scores(model, passages, method), cut


def split_last_word(text: str) -> tuple[str, str]:
    """Splits a text into (context, last word).

    The word includes the white space before it; trailing white space is dropped.

    Raises:
      BadRowError: the text has fewer than two words.
    """
    text = text.rstrip(_SPACE)
    context = text[: 1 + max(text.rfind(space) for space in _SPACE)].rstrip(_SPACE)
    if not context.strip():
        raise BadRowError("no word before the last one")
    return context, text[len(context) :]


def read_last_words(
    spec: str, text_feature: str, on_bad_rows: OnBadRows, notes: Notes
) -> list[Row]:
    """Reads texts and splits off their last words, as in LAMBADA.

    Args:
      spec: rows as `lmjax.data.rows` reads them, or .txt files with one text per line.
      text_feature: the column of the text.
      on_bad_rows: whether bad rows are skipped or an error.
      notes: records skipped rows.

    Returns:
      Rows with 'context', 'word' and 'where'.

    Raises:
      ConfigError: there are no files or rows, or a bad row if `on_bad_rows` forbids them.
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
    """Results of last-word prediction.

    Attributes:
      right: [texts] bool: every token of the word is the most probable at its position.
      nats: [texts] float64: the negative log-probability of the word.
      cut: number of texts that were truncated on the left.
    """

    right: np.ndarray
    nats: np.ndarray
    cut: int

    @property
    def share(self) -> Share:
        return Share(float(self.right.sum()), len(self.right))

    @property
    def perplexity(self) -> float:
        """The perplexity per word."""
        return float(np.exp(self.nats.mean()))


def last_words(
    model: Pretrained, pairs: Sequence[tuple[str, str]], method: Method | None = None
) -> LastWords:
    """Scores (context, last word) of each text.

    A causal model predicts a word correctly if greedy decoding generates it; `pseudo`, if each of
    its tokens is the most probable given the other tokens of the word.

    Raises:
      ConfigError: the method is `discriminator`, or a word does not fit the position table.
    """
    method = method or methods_of(model)[0]
    if method == "discriminator":
        raise ConfigError("--method: a discriminator predicts no words; use pseudo (the generator)")
    found, cut = continuation_scores(model, pairs, method)
    return LastWords(
        right=np.array([scores.greedy.all() for scores in found]),
        nats=np.array([-scores.logs.sum() for scores in found]),
        cut=int(cut.sum()),
    )
