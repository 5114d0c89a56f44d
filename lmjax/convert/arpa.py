"""ARPA files of n-gram models: the format of SRILM and kenlm.

A word of the file is a token. `<s>` and `</s>` are the tokens that begin and end a text, and
`<unk>` is the token for unknown text. Files have log10 p and log10 back-off weights.
"""

import dataclasses
import math
import pathlib
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers

from lmjax.convert.ngrams import check_ngrams, opened
from lmjax.convert.pretrained import Pretrained
from lmjax.data.files import form_of, read_lines
from lmjax.data.tokenizers import Tokenizer
from lmjax.errors import ConfigError
from lmjax.models.ngram import NgramConfig, order_parameters

_BEGIN, _END, _UNKNOWN = "<s>", "</s>", "<unk>"
_NEVER = -99.0  # log10 p of `<s>`, as other tools write it
_MISSING = -100.0  # log10 p of `<unk>` if the file lacks it, as in kenlm
_SPACE = " \t\r\n\x0b\x0c\0"  # what kenlm separates words by
_FIELDS = re.compile(r"[^ \t\r]+").findall
_COUNT = re.compile(r"ngram\s+(\d{1,9})\s*=\s*(\d{1,18})\s*")
_MOST_ORDERS = 10
_LARGEST = 1e4  # of a log10 p or back-off weight
_ROUNDING = 1e-6  # log10 p of 1 may be this large
_TOLERANCE = 1e-3  # of the sum of probabilities
_CHUNK = 1 << 16  # n-grams per write


def is_arpa(path: str | pathlib.Path) -> bool:
    """Whether a path names an ARPA file, compressed or not."""
    return form_of(path) == ".arpa"


def write_arpa(model: Pretrained, path: str | pathlib.Path) -> None:
    """Writes an n-gram model as an ARPA file that kenlm opens.

    Raises:
      ConfigError: the model is no n-gram model, its scores are no probabilities, or one of its
        tokens cannot be a word of the file.
    """
    check_ngrams(model)
    if "causal" not in model.network.score_methods:
        raise ConfigError(
            f"--to: ARPA files hold probabilities, and scores of {model.config.smoothing} are none"
        )
    sections = list(_sections(model))
    place = pathlib.Path(path)
    partial = place.with_name(f"{place.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write("\\data\\\n")
            file.writelines(f"ngram {n}={len(p)}\n" for n, (_, p, _) in enumerate(sections, 1))
            for n, (columns, p, weights) in enumerate(sections, 1):
                file.write(f"\n\\{n}-grams:\n")
                for start in range(0, len(p), _CHUNK):
                    part = slice(start, start + _CHUNK)
                    grams = map(
                        " ".join, zip(*(words[ids[part]] for words, ids in columns), strict=True)
                    )
                    if weights is None:
                        lines = (f"{x:.8g}\t{g}\n" for x, g in zip(p[part], grams, strict=True))
                    else:
                        each = zip(p[part], grams, weights[part], strict=True)
                        lines = (f"{x:.8g}\t{g}\t{w:.8g}\n" for x, g, w in each)
                    file.writelines(lines)
            file.write("\n\\end\\\n")
        partial.replace(place)
    except OSError as error:
        raise ConfigError(f"--to: cannot write '{place}' ({error.strerror})") from error
    finally:
        partial.unlink(missing_ok=True)


_Column = tuple[np.ndarray, np.ndarray]  # words by token id, and the ids of one place


def _sections(
    model: Pretrained,
) -> Iterator[tuple[list[_Column], np.ndarray, np.ndarray | None]]:
    """Yields the columns of words, log10 p and log10 back-off weights of each order."""
    config = model.config
    orders = [
        {name: np.asarray(x) for name, x in model.params[f"order_{n}"].items()}
        for n in range(1, config.order + 1)
    ]
    words, kept = _words(model, orders)
    # The same token may begin and end texts: at the first place it is <s>, at the last </s>.
    first, last = words.copy(), words.copy()
    first[config.begin_id], last[config.end_id] = _BEGIN, _END
    scale = 1 / math.log(10)
    ids = np.arange(config.vocab_size, dtype=np.int32)
    for n, order in enumerate(orders, 1):
        p, weights = order["log_probs"] * scale, None
        if n < config.order:
            weights = order["log_backoffs"] * scale
        if n == 1:
            listed = kept if config.begin_id == config.end_id else kept[kept != config.begin_id]
            both = np.append(config.begin_id, listed)
            spelled, p = last[both], p[both]
            spelled[0], p[0] = _BEGIN, _NEVER
            if weights is not None:
                weights = np.where(both == config.end_id, 0.0, weights[both])
                weights[0] = order["log_backoffs"][config.begin_id] * scale
            yield [(spelled, np.arange(len(both)))], p, weights
            ids = ids[:, None]
        else:
            contexts = np.repeat(np.arange(len(ids)), np.diff(orders[n - 2]["starts"]))
            ids = np.column_stack([ids[contexts], order["tokens"]])
            inside = [(words, ids[:, i]) for i in range(1, n - 1)]
            yield [(first, ids[:, 0]), *inside, (last, ids[:, -1])], p, weights


def _words(model: Pretrained, orders: Sequence[Mapping[str, np.ndarray]]) -> Any:
    """Returns the words of all ids, as an array of objects, and the ids that have one.

    Raises:
      ConfigError: a token of the n-grams cannot be a word.
    """
    tokenizer, config = model.tokenizer, model.config
    assert tokenizer is not None
    special = {config.begin_id, config.end_id}
    words = np.array([tokenizer.token(i) for i in range(config.vocab_size)], object)
    words[tokenizer.roles["unk"]] = _UNKNOWN
    taken = {_BEGIN, _END}
    p = orders[0]["log_probs"]
    least = p[[i for i in range(len(p)) if i != config.begin_id]].min()
    occurs = p > least
    for order in orders[1:]:
        occurs[order["tokens"]] = True
    kept = []
    for i, word in enumerate(words):
        if i in special:
            kept.append(i)
        elif word and word not in taken and not any(c in _SPACE for c in word):
            taken.add(word)
            kept.append(i)
        elif occurs[i]:
            raise ConfigError(f"--to: the token {word!r} (id {i}) cannot be a word of an ARPA file")
    return words, np.array(kept)


def read_arpa(path: str | pathlib.Path, tokenizer: Tokenizer | None = None) -> Pretrained:
    """Opens an ARPA file, which may be compressed as .gz or .xz.

    Args:
      tokenizer: the tokenizer whose tokens are the words of the file. Its tokens that the file does
        not list have the probability of `<unk>`. None: white space separates the words of a text.

    Raises:
      ConfigError: the file is malformed, or does not fit the tokenizer; names the line.
    """
    file = _File(path)
    words, sections = file.read()
    given = tokenizer is not None
    tokenizer = tokenizer or _word_tokenizer(words)
    roles = tokenizer.roles
    reserved = {_BEGIN: roles["eod"], _END: roles["eod"], _UNKNOWN: roles["unk"]} if given else {}
    token = np.zeros(len(words), np.int64)  # the id of each word
    met = dict[int, str]()
    for word, i in words.items():
        found = reserved.get(word, tokenizer.token_id(word))
        if found is None:
            file.fail(sections[0].lines[i], f"'{word}' is no token of the tokenizer")
        if met.setdefault(found, word) != word and {met[found], word} != {_BEGIN, _END}:
            file.fail(sections[0].lines[i], f"'{word}' and '{met[found]}' are the same token")
        token[i] = found
    size, begin, end = tokenizer.size, words[_BEGIN], words[_END]
    p = np.full(size, _MISSING)
    if given and _UNKNOWN in words:
        p[:] = sections[0].p[words[_UNKNOWN]]
    weights = np.zeros(size)
    p[token], weights[token] = sections[0].p, sections[0].weights
    p[token[end]], weights[token[begin]] = sections[0].p[end], sections[0].weights[begin]
    total = (10**p).sum() - (10 ** p[token[begin]] if token[begin] != token[end] else 0)
    if total > 1 + _TOLERANCE:
        raise ConfigError(
            f"{path}: the probabilities of the {size} tokens sum to {total:.4g}, since each token"
            f" that is not listed has that of {_UNKNOWN}; build it with lmplz --vocab_pad={size}"
        )
    orders = [{"p": p, "weights": weights}]
    keys: list[np.ndarray] = []  # of orders 2 and higher: context * size + token, ascending
    for n, section in enumerate(sections[1:], 2):
        ids = token[section.ids]
        context = ids[:, 0]
        for k in range(1, n - 1):
            wanted = context * size + ids[:, k]
            place = np.minimum(np.searchsorted(keys[k - 1], wanted), len(keys[k - 1]) - 1)
            missing = np.flatnonzero(keys[k - 1][place] != wanted)
            if len(missing):
                file.fail(section.lines[missing[0]], f"its context is not among the {n - 1}-grams")
            context = place
        own = context * size + ids[:, -1]
        by_key = np.argsort(own, kind="stable")
        own = own[by_key]
        twice = np.flatnonzero(np.diff(own) == 0)
        if len(twice):
            file.fail(section.lines[by_key[twice[0] + 1]], "the n-gram is listed twice")
        counts = np.bincount(context, minlength=len(orders[-1]["p"]))
        orders[-1]["starts"] = np.concatenate([[0], np.cumsum(counts)])
        p, weights = section.p[by_key], section.weights[by_key]
        orders.append({"p": p, "weights": weights, "tokens": own % size})
        keys.append(own)
    nats = math.log(10)
    params = {}
    for n, order in enumerate(orders, 1):
        following = (order["starts"], orders[n]["p"] * nats) if n < len(orders) else None
        params[f"order_{n}"] = order_parameters(
            order["p"] * nats,
            order.get("tokens"),
            order["weights"] * nats if following else None,
            following,
        )
    config = NgramConfig(size, len(orders), int(token[begin]), int(token[end]))
    return opened(config, params, tokenizer)


def _word_tokenizer(words: Iterable[str]) -> Tokenizer:
    """Returns a tokenizer whose tokens are words, in this order."""
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([*words, _UNKNOWN]))}
    inner = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=_UNKNOWN))
    inner.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(f"[{_SPACE}]+"), "removed")
    return Tokenizer(inner)


@dataclasses.dataclass(frozen=True, eq=False)
class _Section:
    """The n-grams of one order.

    Attributes:
      ids: int32 [n-grams, n], indices of words in the first section.
      p, weights: float64 [n-grams], log10 p and log10 back-off weights, 0 if not given.
      lines: [n-grams], line numbers.
    """

    ids: np.ndarray
    p: np.ndarray
    weights: np.ndarray
    lines: np.ndarray


class _File:
    """An ARPA file, read line by line."""

    def __init__(self, path: str | pathlib.Path):
        self._path = pathlib.Path(path)
        self._lines = read_lines(self._path, "model")
        self._number = 0

    def fail(self, number: int, reason: str) -> NoReturn:
        raise ConfigError(f"{self._path}:{number}: {reason}")

    def read(self) -> tuple[dict[str, int], list[_Section]]:
        """Returns the words with their index, and the sections.

        Raises:
          ConfigError: the file is not complete and sound.
        """
        self._expect("\\data\\", self._next())
        counts: list[int] = []
        while (line := self._next()).startswith("ngram"):
            found = _COUNT.fullmatch(line)
            if found is None or int(found[1]) != len(counts) + 1 or not int(found[2]):
                self.fail(self._number, f"expected 'ngram {len(counts) + 1}=COUNT', got '{line}'")
            counts.append(int(found[2]))
        if not 1 <= len(counts) <= _MOST_ORDERS:
            self.fail(self._number, f"{len(counts)} orders; 1 to {_MOST_ORDERS} are supported")
        words: dict[str, int] = {}
        sections = []
        for n, count in enumerate(counts, 1):
            self._expect(f"\\{n}-grams:", line)
            section, line = self._section(n, count, n == len(counts), words)
            sections.append(section)
            if n == 1:
                for word in (_BEGIN, _END):
                    if word not in words:
                        self.fail(self._number, f"the 1-grams lack '{word}'")
                continue
            for word, places, where in (
                (_BEGIN, slice(1, None), "after the first place"),
                (_END, slice(0, -1), "before the last place"),
            ):
                wrong = np.flatnonzero((section.ids[:, places] == words[word]).any(1))
                if len(wrong):
                    self.fail(section.lines[wrong[0]], f"'{word}' {where}")
        self._expect("\\end\\", line)
        return words, sections

    def _next(self) -> str:
        """Returns the next line that is not blank, without white space at its ends."""
        for number, line in self._lines:
            self._number = number
            if stripped := line.strip(_SPACE):
                return stripped
        self.fail(self._number, "the file ends before '\\end\\'")

    def _expect(self, wanted: str, line: str) -> None:
        if line != wanted:
            self.fail(self._number, f"expected '{wanted}', got '{line[:60]}'")

    def _section(
        self, n: int, count: int, highest: bool, words: dict[str, int]
    ) -> tuple[_Section, str]:
        """Reads a section; also returns the line after it. The first one fills `words`."""
        ids, p, weights, lines = array("i"), array("d"), array("d"), array("q")
        most = n + 1 if highest else n + 2
        while True:
            line = self._next()
            if line[0] == "\\":
                break
            fields = _FIELDS(line)
            if not n + 1 <= len(fields) <= most:
                many = f"{n + 1} or {most}" if most > n + 1 else f"{most}"
                self.fail(self._number, f"{len(fields)} fields; a {n}-gram has {many}")
            weight = fields[n + 1] if len(fields) == n + 2 else "0"
            p.append(self._float(fields[0], _ROUNDING))
            weights.append(self._float(weight, _LARGEST))
            lines.append(self._number)
            for word in fields[1 : n + 1]:
                if n == 1 and words.setdefault(word, len(words)) != len(lines) - 1:
                    self.fail(self._number, f"'{word}' is listed twice")
                index = words.get(word)
                if index is None:
                    self.fail(self._number, f"'{word}' is not among the 1-grams")
                ids.append(index)
        if len(lines) != count:
            self.fail(self._number, f"{len(lines)} {n}-grams, but the header promises {count}")
        arrays = [np.frombuffer(x, x.typecode) for x in (ids, p, weights, lines)]
        return _Section(arrays[0].reshape(-1, n), *arrays[1:]), line

    def _float(self, text: str, largest: float) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not -_LARGEST <= value <= largest:
            self.fail(self._number, f"{text!r} is not a logarithm")
        return value
