"""What there is to know of token ids: all that objectives and examples need of a tokenizer."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Vocabulary:
    """Token ids by role, and what holds of each id.

    Attributes:
      size: number of tokens.
      pad, unk, cls, sep, mask: ids of the special tokens.
      eod: id of the document boundary, GPT's first and last token of a document.
      special: [size] bool, never masked and never a target of masking.
      starts_word: [size] bool, the piece begins a word; punctuation counts as a start.
      log_frequency: [size] float32, log unigram probability on the training tokens,
        add-one smoothed.
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
