"""Minimal pairs: does a model prefer the acceptable one of two similar sentences?

Reads BLiMP (Warstadt et al. 2020) and data in its format: JSON lines with `good` and `bad` (or
`sentence_good` and `sentence_bad`) and optional names of the paradigm and phenomenon.
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
from lmjax.errors import ConfigError, require_finite
from lmjax.evaluation.scoring import Method, Passage, passage_scores, token_scores

_COLUMNS = {
    "good": ("good", "sentence_good"),
    "bad": ("bad", "sentence_bad"),
    "paradigm": ("uid", "UID"),
    "phenomenon": ("phenomenon", "linguistics_term"),
}


@dataclasses.dataclass(frozen=True)
class Pair:
    """A minimal pair.

    Attributes:
      good, bad: the acceptable and the unacceptable sentence.
      paradigm, phenomenon: what the pair tests; may be ''.
      file: the name of the source file without suffixes, or its path if names clash.
    """

    good: str
    bad: str
    paradigm: str = ""
    phenomenon: str = ""
    file: str = ""


@dataclasses.dataclass(frozen=True)
class Share:
    """A number of correct items out of a total; a tie counts as half.

    Attributes:
      interval: Wilson's 95% interval for similar items. Pairs of one paradigm are very similar,
        so the interval does not extend to other paradigms.
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
        return max(0.0, low), min(1.0, high)  # rounding may exceed the bounds


def read_pairs(
    spec: str | pathlib.Path, per_paradigm: int = 0, where: str = "--data"
) -> list[Pair]:
    """Reads pairs from files of JSON lines, optionally compressed as .gz or .xz.

    Args:
      spec: a path, a glob, or a directory with .jsonl files. The paradigm of a pair defaults to
        the file name.
      per_paradigm: reads only the first pairs of each paradigm; 0 = all.
      where: the config field or flag that holds `spec`, for messages.

    Raises:
      ConfigError: there is no such file, or a line is not a pair.
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
    """Returns [pairs]: 1 if the good sentence has the higher total score, 0.5 for a tie, else 0."""
    texts = [text for pair in pairs for text in (pair.good, pair.bad)]
    sums = np.array([scores.sum() for scores in token_scores(model, texts, method)])
    return judged(sums)


def judged(sums: np.ndarray) -> np.ndarray:
    """As `judge`, for total scores [2 * pairs] that alternate between good and bad.

    Raises:
      NonFiniteError: a sum is NaN or infinite.
    """
    require_finite(sums, "scores of sentences")
    good, bad = sums[::2], sums[1::2]
    return np.where(good == bad, 0.5, (good > bad).astype(float))


def unigram(model: Pretrained, pairs: Sequence[Pair], counts: np.ndarray) -> np.ndarray:
    """As `judge`, with a unigram model: add-one smoothed token `counts` [vocab_size]."""
    assert model.tokenizer is not None
    logs = model.tokenizer.vocabulary(counts).log_frequency.astype(np.float64)
    texts = [text for pair in pairs for text in (pair.good, pair.bad)]
    return judged(np.array([logs[ids].sum() for ids in model.tokenizer.encode_batch(texts)]))


def by_ngrams(model: Pretrained, pairs: Sequence[Pair]) -> np.ndarray:
    """As `judge`, with an n-gram model that also scores the end of the sentence."""
    assert model.tokenizer is not None
    texts = [text for pair in pairs for text in (pair.good, pair.bad)]
    end = model.token_ids["eos_token_id"]
    passages = [Passage(np.append(ids, end)) for ids in model.tokenizer.encode_batch(texts)]
    return judged(np.array([scores.logs.sum() for scores in passage_scores(model, passages)]))


def shares(
    pairs: Sequence[Pair],
    right: np.ndarray,
    by: Literal["phenomenon", "paradigm", "file"] = "phenomenon",
) -> Mapping[str, Share]:
    """Groups results by phenomenon, paradigm or file, in the order of the pairs, with 'all' last.

    Pairs without a phenomenon are grouped by their paradigm.
    """
    found: dict[str, list[float]] = {}
    for pair, value in zip(pairs, right, strict=True):
        group = getattr(pair, by) or pair.paradigm or "pairs"
        found.setdefault(group, []).append(float(value))
    by_name = {name: Share(sum(values), len(values)) for name, values in found.items()}
    return {**by_name, "all": Share(float(right.sum()), len(right))}


def mean_of_files(pairs: Sequence[Pair], right: np.ndarray) -> float:
    """Returns the unweighted mean of the accuracies of the files."""
    *by_file, _ = shares(pairs, right, "file").values()
    return math.fsum(share.accuracy for share in by_file) / len(by_file)
