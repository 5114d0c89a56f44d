"""Properties of token ids: the part of a tokenizer that objectives and examples use."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Vocabulary:
    """Ids of special tokens, and properties of all ids.

    Attributes:
      size: number of token ids.
      pad, unk, cls, sep, mask: ids of the special tokens.
      eod: id of the document boundary, GPT's first and last token of a document.
      special: [size] bool, tokens that are never masked.
      starts_word: [size] bool, whether the piece begins a word; punctuation does.
      log_frequency: [size] float32, log unigram probability on the training tokens with add-one
        smoothing.
    """

    size: int
    pad: int
    unk: int
    cls: int
    sep: int
    mask: int
    eod: int
    special: np.ndarray
    starts_word: np.ndarray
    log_frequency: np.ndarray
