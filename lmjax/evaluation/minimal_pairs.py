"""Minimal pairs: of two sentences that differ in one thing, is the good one likelier?

BLiMP (Warstadt et al. 2020) and what has its form: JSON lines with `good`, `bad` (or
`sentence_good`, `sentence_bad`), and names of what they test.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from lmjax.convert.pretrained import Pretrained
from lmjax.data.corpora import open_file
from lmjax.data.tokenizers import Tokenizer
from lmjax.errors import ConfigError, require_finite
from lmjax.evaluation.scoring import Method, token_scores
from lmjax.models.ngram import NgramModel

_COLUMNS = {
    "good": ("good", "sentence_good"),
    "bad": ("bad", "sentence_bad"),
    "paradigm": ("uid", "UID"),
    "phenomenon": ("phenomenon", "linguistics_term"),
}


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two sentences; `paradigm` and `phenomenon` may be ''."""

    good: str
    bad: str
    paradigm: str = ""
    phenomenon: str = ""


@dataclasses.dataclass(frozen=True)
class Share:
    """How many pairs were told right; a tie is half of one.

    Attributes:
      interval: Wilson's, 95%: of pairs like these. Pairs of a paradigm are much alike, so it
        says little of other paradigms.
    """

    right: float
    count: int

    @property
    def accuracy(self) -> float:
        return self.right / self.count

    @property
    def interval(self) -> tuple[float, float]:
        z, n, p = 1.96, self.count, self.accuracy
        middle, wide = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return (middle - wide) / (1 + z * z / n), (middle + wide) / (1 + z * z / n)


def read_pairs(path: str | pathlib.Path, per_paradigm: int = 0) -> list[Pair]:
    """The pairs of a .jsonl file, or of one packed as .gz or .xz.

    Args:
      per_paradigm: only so many of each paradigm, the first ones; 0 = all.

    Raises:
      ConfigError: no such file, or a line that is no pair.
    """
    place = pathlib.Path(path)
    pairs: list[Pair] = []
    taken: dict[str, int] = {}
    try:
        with open_file(place) as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                pair = _pair(line, f"--data: {place.name}, line {number}")
                taken[pair.paradigm] = taken.get(pair.paradigm, 0) + 1
                if not per_paradigm or taken[pair.paradigm] <= per_paradigm:
                    pairs.append(pair)
    except (OSError, EOFError) as error:
        raise ConfigError(f"--data: '{path}' cannot be read ({error})") from error
    if not pairs:
        raise ConfigError(f"--data: no pair in '{path}'")
    return pairs


def _pair(line: bytes, where: str) -> Pair:
    try:
        values = json.loads(line)
        found = {
            name: next((values[c] for c in columns if c in values), "")
            for name, columns in _COLUMNS.items()
        }
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{where}: no JSON object ({error})") from error
    for name in ("good", "bad"):
        if not isinstance(found[name], str) or not found[name].strip():
            raise ConfigError(f"{where}: no sentence '{name}'")
    return Pair(**{name: str(value) for name, value in found.items()})


def judge(model: Pretrained, pairs: Sequence[Pair], method: Method | None = None) -> np.ndarray:
    """[pairs]: 1 where the sum of the good sentence's scores is higher, 0.5 at a tie, else 0."""
    texts = [text for pair in pairs for text in (pair.good, pair.bad)]
    sums = np.array([scores.sum() for scores in token_scores(model, texts, method)])
    return judged(sums)


def judged(sums: np.ndarray) -> np.ndarray:
    """As `judge`, of sums [2 * pairs] of good and bad by turns.

    Raises:
      NonFiniteError: a sum is NaN or infinite.
    """
    require_finite(sums, "scores of sentences")
    good, bad = sums[::2], sums[1::2]
    return np.where(good == bad, 0.5, (good > bad).astype(float))


def unigram(model: Pretrained, pairs: Sequence[Pair], counts: np.ndarray) -> np.ndarray:
    """As `judge`, by how frequent the tokens are: add-one smoothed `counts` [vocab_size]."""
    assert model.tokenizer is not None
    logs = model.tokenizer.vocabulary(counts).log_frequency.astype(np.float64)
    texts = [text for pair in pairs for text in (pair.good, pair.bad)]
    return judged(np.array([logs[ids].sum() for ids in model.tokenizer.encode_batch(texts)]))


def by_ngrams(tokenizer: Tokenizer, pairs: Sequence[Pair], model: NgramModel) -> np.ndarray:
    """As `judge`, by an n-gram model of the tokenizer's tokens, the sentence's end included."""
    texts = [text for pair in pairs for text in (pair.good, pair.bad)]
    begin, end = [model.vocab_size], [model.vocab_size + 1]
    ids = [np.concatenate([begin, i, end]) for i in tokenizer.encode_batch(texts)]
    # One after the other: nothing was ever counted that reaches over a sentence's end.
    logs = np.log(model.probabilities(np.concatenate(ids)))
    parts = np.split(logs, np.cumsum([len(i) for i in ids])[:-1])
    return judged(np.array([math.fsum(part[1:]) for part in parts]))


def shares(
    pairs: Sequence[Pair], right: np.ndarray, by: Literal["phenomenon", "paradigm"] = "phenomenon"
) -> Mapping[str, Share]:
    """By phenomenon or paradigm, in the order of the file, and 'all' last."""
    found: dict[str, list[float]] = {}
    for pair, value in zip(pairs, right, strict=True):
        found.setdefault(getattr(pair, by) or "pairs", []).append(float(value))
    by_name = {name: Share(sum(values), len(values)) for name, values in found.items()}
    return {**by_name, "all": Share(float(right.sum()), len(right))}
