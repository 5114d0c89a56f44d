"""How a task reads one text or two: cut to a length, in windows, padded on the family's side."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from lmjax.data.vocabulary import Vocabulary
from lmjax.models.family import Joined, ModelConfig


@dataclasses.dataclass(frozen=True)
class InputFormat:
    """The inputs of a family (`ModelConfig.join`) over a vocabulary."""

    model: ModelConfig
    vocabulary: Vocabulary

    @property
    def left_padded(self) -> bool:
        return self.model.left_padded

    def special_tokens(self, pair: bool) -> int:
        """How many tokens `join` adds."""
        return self.model.special_tokens(pair)

    def join(self, first: np.ndarray, second: np.ndarray | None = None) -> Joined:
        """The input made of the ids of one text or two."""
        return self.model.join(self.vocabulary, first, second)

    def ask(self, prompt: np.ndarray, answer: np.ndarray | None = None) -> Joined:
        """A prompt and what a language model answers."""
        return self.model.ask(self.vocabulary, prompt, answer)

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
