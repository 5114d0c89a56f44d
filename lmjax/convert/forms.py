"""How each family reads one text or two: special tokens, segments, windows, side of padding."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from lmjax.convert.configs import ModelConfig
from lmjax.data.vocabulary import Vocabulary
from lmjax.models.gpt import GptConfig
from lmjax.models.xlnet import XlnetConfig

_XLNET_CLS_SEGMENT = 2


@dataclasses.dataclass(frozen=True)
class Joined:
    """One input.

    Attributes:
      tokens, segments: [length] int32.
      first, second: where the texts begin in it.
    """

    tokens: np.ndarray
    segments: np.ndarray
    first: int
    second: int


@dataclasses.dataclass(frozen=True)
class Form:
    """The input form of a family.

    BERT and ELECTRA: [CLS] a [SEP] b [SEP], segments 0 and 1 (BERT §4.1, A.5). XLNet:
    a [SEP] b [SEP] [CLS], segments 0, 1 and 2, padded on the left (the authors'
    classifier_utils.py). GPT: start a delimiter b extract (GPT-1 §3.3), of which start is
    [EOD], which pretraining has taught it to begin with, and the others [SEP] and [CLS].
    """

    model: ModelConfig
    vocabulary: Vocabulary

    @property
    def left_padded(self) -> bool:
        return isinstance(self.model, XlnetConfig)

    def special_tokens(self, pair: bool) -> int:
        """How many tokens the form adds."""
        return 3 if pair else 2

    def join(self, first: np.ndarray, second: np.ndarray | None = None) -> Joined:
        """The input made of the ids of one text or two."""
        v = self.vocabulary
        b = second if second is not None else np.zeros(0, np.int32)
        ends = [v.sep] if second is not None else []
        if isinstance(self.model, XlnetConfig):
            tokens = [*first, v.sep, *b, *ends, v.cls]
            segments = [0] * (len(first) + 1) + [1] * (len(b) + len(ends)) + [_XLNET_CLS_SEGMENT]
            start = 0
        elif isinstance(self.model, GptConfig):
            tokens = [v.eod, *first, *ends, *b, v.cls]
            segments = [0] * len(tokens)
            start = 1
        else:
            tokens = [v.cls, *first, v.sep, *b, *ends]
            kinds = min(self.model.segment_types - 1, 1)  # a model may have one kind alone
            segments = [0] * (len(first) + 2) + [kinds] * (len(b) + len(ends))
            start = 1
        return Joined(
            np.asarray(tokens, np.int32),
            np.asarray(segments, np.int32),
            start,
            start + len(first) + 1,
        )

    def ask(self, prompt: np.ndarray, answer: np.ndarray | None = None) -> Joined:
        """A prompt and what a language model answers: start prompt delimiter answer."""
        following = answer if answer is not None else np.zeros(0, np.int32)
        tokens = np.array([self.vocabulary.eod, *prompt, self.vocabulary.sep, *following], np.int32)
        return Joined(tokens, np.zeros_like(tokens), 1, len(prompt) + 2)

    def cut(
        self, first: np.ndarray, second: np.ndarray | None, length: int
    ) -> tuple[np.ndarray, np.ndarray | None, bool]:
        """The texts so short that the input fits, and whether anything was cut.

        Of a pair the longer one loses its last token until both fit, as in BERT's
        `_truncate_seq_pair`.
        """
        room = length - self.special_tokens(second is not None)
        if second is None:
            return first[:room], None, len(first) > room
        a, b = len(first), len(second)
        if a + b <= room:
            return first, second, False
        half = room // 2
        # Where one of them is short, the other takes what it leaves; at a tie the second loses.
        if a <= room - half:
            b = room - a
        elif b <= half:
            a = room - b
        else:
            a, b = room - half, half
        return first[:a], second[:b], True


def spans(count: int, room: int, stride: int) -> list[tuple[int, int]]:
    """(begin, end) of windows of `room` tokens, `stride` apart, over `count` tokens."""
    windows, begin = [], 0
    while True:
        end = min(begin + room, count)
        windows.append((begin, end))
        if end == count:
            return windows
        begin += min(end - begin, stride)


def widest_windows(windows: Sequence[tuple[int, int]], count: int) -> np.ndarray:
    """The window that shows most around each token, [count]; run_squad's `_check_is_max_context`:
    min(left, right) + 0.01 * length of the window, the first of equals."""
    place = np.arange(count)
    scores = np.full((len(windows), count), -1.0)
    for w, (begin, end) in enumerate(windows):
        around = np.minimum(place - begin, end - 1 - place)
        inside = (place >= begin) & (place < end)
        scores[w] = np.where(inside, around + 0.01 * (end - begin), -1.0)
    return scores.argmax(0)
