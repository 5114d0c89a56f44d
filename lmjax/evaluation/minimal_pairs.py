"""Minimal pairs: of two sentences that differ in one thing, is the good one likelier?

BLiMP (Warstadt et al. 2020) and what has its form: JSON lines with `good`, `bad` (or
`sentence_good`, `sentence_bad`), and names of what they test.
"""

import collections
import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from lmjax.convert.pretrained import Pretrained
from lmjax.data.files import (
    BadRowError,
    fault_of,
    find_files,
    form_of,
    json_row,
    name_of,
    read_lines,
)
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
    """Two sentences.

    Attributes:
      paradigm, phenomenon: what they test; may be ''.
      file: that they are from, by the name without endings, or by the path where names clash.
    """

    good: str
    bad: str
    paradigm: str = ""
    phenomenon: str = ""
    file: str = ""


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
        low, high = (middle - wide) / (1 + z * z / n), (middle + wide) / (1 + z * z / n)
        return max(0.0, low), min(1.0, high)  # rounding may leave these


def read_pairs(
    spec: str | pathlib.Path, per_paradigm: int = 0, where: str = "--data"
) -> list[Pair]:
    """The pairs of files of JSON lines, packed as .gz or .xz or not.

    Args:
      spec: a path, a glob, or a directory, of which the .jsonl files are read. A pair that names
        no paradigm is of that of its file's name.
      per_paradigm: only so many of each paradigm, the first ones; 0 = all.
      where: the config field or flag that holds `spec`, for messages.

    Raises:
      ConfigError: no such file, or a line that is no pair.
    """
    pairs: list[Pair] = []
    taken: collections.Counter[str] = collections.Counter()
    paths = find_files(str(spec), where, lambda path: form_of(path) == ".jsonl", True)
    names = [name_of(path) for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    for path, name in zip(paths, names, strict=True):
        before = len(pairs)
        for number, line in read_lines(path, where):
            if line.strip():
                pair = _pair(json_row(line), name, f"{where}: {path}:{number}")
                taken[pair.paradigm] += 1
                if not per_paradigm or taken[pair.paradigm] <= per_paradigm:
                    pairs.append(pair)
        if len(pairs) == before:
            raise ConfigError(f"{where}: no pair in '{path}'")
    return pairs


def _pair(row: Mapping[str, Any] | BadRowError, file: str, where: str) -> Pair:
    if isinstance(row, BadRowError):
        raise ConfigError(f"{where}: {row}")
    found = {
        name: next((row[c] for c in columns if row.get(c) is not None), "")
        for name, columns in _COLUMNS.items()
    }
    for name in ("good", "bad"):
        if not isinstance(found[name], str) or not found[name].strip():
            raise ConfigError(f"{where}: no sentence '{name}'")
        if fault := fault_of(found[name]):
            raise ConfigError(f"{where}: {fault} (in '{name}')")
    texts = {name: str(value) for name, value in found.items()}
    return Pair(**texts | {"paradigm": texts["paradigm"] or file}, file=file)


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
    pairs: Sequence[Pair],
    right: np.ndarray,
    by: Literal["phenomenon", "paradigm", "file"] = "phenomenon",
) -> Mapping[str, Share]:
    """By phenomenon, paradigm or file, in the order of the pairs, and 'all' last.

    Pairs without a phenomenon stand under their paradigm.
    """
    found: dict[str, list[float]] = {}
    for pair, value in zip(pairs, right, strict=True):
        group = getattr(pair, by) or pair.paradigm or "pairs"
        found.setdefault(group, []).append(float(value))
    by_name = {name: Share(sum(values), len(values)) for name, values in found.items()}
    return {**by_name, "all": Share(float(right.sum()), len(right))}


def mean_of_files(pairs: Sequence[Pair], right: np.ndarray) -> float:
    """The mean of the files' accuracies: each file counts once, however many pairs it has."""
    *by_file, _ = shares(pairs, right, "file").values()
    return math.fsum(share.accuracy for share in by_file) / len(by_file)
