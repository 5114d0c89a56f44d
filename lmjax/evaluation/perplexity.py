"""Perplexity of long texts under a causal model, with overlapping windows."""

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

_ROWS = 16  # windows per batch
LONGEST = 1024  # tokens of a window if the model has no position table


@dataclasses.dataclass(frozen=True)
class Perplexity:
    """The perplexity of texts.

    Attributes:
      nats: -log p of all scored tokens.
      tokens, words, bytes: sizes of the texts. Words are separated by white space. The token that
        begins a document is not counted.
      unknown: number of tokens that represent text unknown to the tokenizer. They are easy to
        predict, so they make all results too low.
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
    """Returns infinity on overflow: a 'word' may be a page without white space."""
    return math.exp(nats) if nats < 700 else math.inf


class Window(NamedTuple):
    """Tokens [begin, end) of a document; scores those from index `scored` on."""

    begin: int
    end: int
    scored: int


def windows(count: int, length: int, stride: int) -> Iterator[Window]:
    """Yields windows that score each of `count` tokens once, except the first token.

    A window scores the tokens that no earlier window scored. A token thus has at least
    length - stride tokens of left context, if the document has as many.
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
    """Computes the perplexity of documents, each after the token that begins a document.

    Args:
      length: tokens per window; 0 = the size of the position table.
      stride: tokens between the starts of windows; 0 = half a window. A smaller stride gives each
        token more context and a lower perplexity, but takes longer.

    Raises:
      ConfigError: the model is not causal, `length` or `stride` is invalid, or a corpus is empty.
    """
    network = model.network
    if "stupid_backoff" in network.score_methods:
        raise ConfigError(
            "--model: scores of stupid back-off are no probabilities, so they have no perplexity;"
            " use another config.smoothing"
        )
    if "causal" not in network.score_methods or model.tokenizer is None:
        raise ConfigError(
            f"--model: a {type(network).__name__} has no perplexity; use a GPT with its tokenizer"
        )
    limit = getattr(model.config, "max_length", None) or LONGEST
    length = length or limit
    stride = stride or max(1, length // 2)
    if not 2 <= length <= limit:
        raise ConfigError(f"--length: {length} is not between 2 and the model's {limit} positions")
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
