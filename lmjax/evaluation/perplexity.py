"""Perplexity of long texts under a causal model, read in windows that overlap."""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from lmjax.convert.pretrained import Pretrained
from lmjax.data import batching
from lmjax.errors import ConfigError, require_finite
from lmjax.evaluation.scoring import causal_scores
from lmjax.progress import track

_ROWS = 16  # windows that are read at once
LONGEST = 1024  # tokens of a window where there is no position table


@dataclasses.dataclass(frozen=True)
class Perplexity:
    """What a model finds of some texts.

    Attributes:
      nats: -log p of all tokens that were scored.
      tokens, words, bytes: of the texts; words are what stands between white space. The begin
        of a document is read and not counted.
      unknown: of the tokens, how many stand for text that the tokenizer cannot write; they are
        easily foretold, and make all numbers lower than they should be.
    """

    nats: float
    tokens: int
    words: int
    bytes: int
    unknown: int

    @property
    def per_token(self) -> float:
        return _exp(self.nats / self.tokens)

    @property
    def per_word(self) -> float:
        return _exp(self.nats / self.words)

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.bytes


def _exp(nats: float) -> float:
    """Infinite where a float has no room: a 'word' may be a page without white space."""
    return math.exp(nats) if nats < 700 else math.inf


class Window(NamedTuple):
    """Tokens begin..end of a document, of which those from `scored` on are scored."""

    begin: int
    end: int
    scored: int


def windows(count: int, length: int, stride: int) -> Iterator[Window]:
    """Windows over `count` tokens, the first of which is only read; each other is scored once.

    A window scores what the ones before it did not, so that a token has at least
    length - stride tokens before it in its window, where the document has as many.
    """
    done = 1
    for begin in range(0, count, stride):
        end = min(begin + length, count)
        if end > done:
            yield Window(begin, end, done)
        done = max(done, end)
        if end == count:
            return


def perplexity(
    model: Pretrained, documents: Iterable[str], length: int = 0, stride: int = 0
) -> Perplexity:
    """Reads each document by itself, behind the token that begins one.

    Args:
      length: tokens of a window; 0 = as many as the position table has.
      stride: tokens from one window to the next; 0 = half a window. The smaller, the more each
        token sees, the lower the perplexity and the longer it takes.

    Raises:
      ConfigError: no causal model; lengths that cannot be; no text.
    """
    network = model.network
    if "causal" not in network.score_methods or model.tokenizer is None:
        raise ConfigError(
            f"--model: a {type(network).__name__} has no perplexity; give a GPT with its tokenizer"
        )
    limit = getattr(model.config, "max_length", None) or LONGEST
    length = length or limit
    stride = stride or max(1, length // 2)
    if not 2 <= length <= limit:
        raise ConfigError(f"--length: {length} is not between 2 and the {limit} positions")
    if not 1 <= stride < length:
        raise ConfigError(f"--stride: {stride} is not between 1 and --length={length}")
    first = model.begin_id
    nats, tokens, words, size, unknown = 0.0, 0, 0, 0, 0
    rows: list[tuple[np.ndarray, int]] = []

    def read() -> float:
        lengths = [len(ids) for ids, _ in rows]
        batch = batching.stack([ids for ids, _ in rows], length, first, rows=_ROWS)
        real = batching.real(lengths, length, rows=_ROWS)
        starts = np.array([[start] for _, start in rows])
        scored = real[: len(rows)] & (np.arange(length) >= starts)
        found = causal_scores(network, model.params, jnp.asarray(batch), jnp.asarray(real))
        logs = np.asarray(found, np.float64)[: len(rows)][scored]
        if not np.isfinite(logs).all():
            require_finite(logs, f"--data: scores in or near {model.named(rows[0][0])}")
        return -float(logs.sum())

    for document in track(documents, "reading"):
        ids = np.concatenate([[first], model.tokenizer.encode_batch([document])[0]])
        model.check_ids(ids, "--data")
        tokens += len(ids) - 1
        unknown += int((ids == model.tokenizer.roles["unk"]).sum())
        words += len(document.split())
        size += len(document.encode())
        for window in windows(len(ids), length, stride):
            rows.append((ids[window.begin : window.end], window.scored - window.begin))
            if len(rows) == _ROWS:
                nats += read()
                rows.clear()
    if rows:
        nats += read()
    if not tokens or not words:
        raise ConfigError("--data: no text in it")
    return Perplexity(nats, tokens, words, size, unknown)
