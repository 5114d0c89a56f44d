"""A corpus reader and a form of examples, written outside of the package."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Iterator

import numpy as np

from lmjax.data.corpora import CorpusReader
from lmjax.data.examples.source import Row, Specials, Store, check_rows
from lmjax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Chapters(CorpusReader):
    """A text file whose documents begin with a marker."""

    path: str
    marker: str = "***"

    @property
    def version(self) -> str:
        return hashlib.blake2b(pathlib.Path(self.path).read_bytes()).hexdigest()

    def check(self) -> None:
        if not pathlib.Path(self.path).is_file():
            raise ConfigError(f"path: no such file: {self.path}")

    def documents(self) -> Iterator[str]:
        yield from pathlib.Path(self.path).read_text().split(self.marker)


@dataclasses.dataclass(frozen=True)
class Windows:
    """[eod] and the tokens behind a place drawn at random, whatever document they are of."""

    length: int

    def source(
        self, store: Store, vocabulary: Specials, *, seed: int, split: str, rows: int
    ) -> "WindowSource":
        made = WindowSource(self.length, store, vocabulary.eod, [seed, len(split)])
        check_rows(len(made), rows, split)
        return made


class WindowSource:
    ordered = False

    def __init__(self, length: int, store: Store, first: int, seed: list[int]):
        self._length, self._tokens, self._first, self._seed = length, store.tokens, first, seed

    def __len__(self) -> int:
        return len(self._tokens) // self._length

    def __getitem__(self, index: int) -> Row:
        places = len(self._tokens) - self._length + 2
        place = int(np.random.default_rng([*self._seed, index]).integers(places))
        text = self._tokens[place : place + self._length - 1]
        zeros = np.zeros(self._length, np.int32)
        return {
            "tokens": np.concatenate([[self._first], text]).astype(np.int32),
            "token_types": zeros,
            "segment_ids": zeros + 1,
            "positions": np.arange(self._length, dtype=np.int32),
        }
