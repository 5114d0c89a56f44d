"""Input formats of tasks: joining, truncating and windowing of one or two texts."""

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
        """Returns the number of tokens that `join` adds."""
        return self.model.special_tokens(pair)

    def join(self, first: np.ndarray, second: np.ndarray | None = None) -> Joined:
        """Joins the ids of one or two texts to a model input."""
        return self.model.join(self.vocabulary, first, second)

    def ask(self, prompt: np.ndarray, answer: np.ndarray | None = None) -> Joined:
        """Joins a prompt and a language model's answer."""
        return self.model.ask(self.vocabulary, prompt, answer)

    def cut(
        self, first: np.ndarray, second: np.ndarray | None, length: int
    ) -> tuple[np.ndarray, np.ndarray | None, bool]:
        """Truncates texts so that the joined input has at most `length` tokens.

        Of a pair, the longer text loses its last token until both fit, as in BERT's
        `_truncate_seq_pair`.

        Returns:
          The texts, and whether any was truncated.
        """
        room = length - self.special_tokens(second is not None)
        if second is None:
            return first[:room], None, len(first) > room
        a, b = len(first), len(second)
        if a + b <= room:
            return first, second, False
        half = room // 2
        # If one text is short, the other gets the remaining room; for a tie, the second is shorter.
        if a <= room - half:
            b = room - a
        elif b <= half:
            a = room - b
        else:
            a, b = room - half, half
        return first[:a], second[:b], True


def spans(count: int, room: int, stride: int) -> list[tuple[int, int]]:
    """Returns (begin, end) of windows of `room` tokens, `stride` apart, over `count` tokens."""
    windows, begin = [], 0
    while True:
        end = min(begin + room, count)
        windows.append((begin, end))
        if end == count:
            return windows
        begin += min(end - begin, stride)


def widest_windows(windows: Sequence[tuple[int, int]], count: int) -> np.ndarray:
    """Returns the window that shows most context around each token, [count].

    As run_squad's `_check_is_max_context`: maximizes min(left, right) + 0.01 * window length; the
    first window wins ties.
    """
    place = np.arange(count)
    scores = np.full((len(windows), count), -1.0)
    for w, (begin, end) in enumerate(windows):
        around = np.minimum(place - begin, end - 1 - place)
        inside = (place >= begin) & (place < end)
        scores[w] = np.where(inside, around + 0.01 * (end - begin), -1.0)
    return scores.argmax(0)
