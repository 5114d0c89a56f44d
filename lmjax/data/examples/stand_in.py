"""Rows with the right shapes, without a corpus."""

import dataclasses

import numpy as np

from lmjax.data.examples.source import Examples, Row, Specials

_SENTENCE, _DOCUMENTS, _ROWS = 8, 8, 2


@dataclasses.dataclass(frozen=True)
class _Blank:
    """A store whose documents repeat a single token."""

    tokens: np.ndarray
    sentence_offsets: np.ndarray
    document_offsets: np.ndarray
    document_token_offsets: np.ndarray


def stand_in_row(examples: Examples, vocabulary: Specials) -> Row:
    """Returns a dummy row of `examples` with the names, shapes and dtypes of real rows."""
    sentences = _DOCUMENTS * (examples.length // _SENTENCE + 2)
    ends = np.arange(sentences + 1) * _SENTENCE
    documents = np.linspace(0, sentences, _DOCUMENTS + 1).astype(np.int64)
    store = _Blank(
        tokens=np.full(ends[-1], vocabulary.eod, np.uint16),
        sentence_offsets=ends,
        document_offsets=documents,
        document_token_offsets=ends[documents],
    )
    return examples.source(store, vocabulary, seed=0, split="train", rows=_ROWS)[0]
