"""Batches of examples held in memory."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from lmjax.data import batching
from lmjax.data.loader import Position
from lmjax.tasks.base import Example, Task

_SHORTEST = 16  # tokens; compiling programs for shorter batches does not pay off


@dataclasses.dataclass(frozen=True)
class Collator:
    """Stacks examples into a batch, padded to one of a few lengths.

    The lengths are `task.length`, 3/4, 1/2, 3/8, 1/4, 3/16 and 1/8 of it. A length compiles its own
    program when it first occurs.

    Attributes:
      multiple: lengths are multiples of this.
      few: batch size for up to this many examples; 0 = always `batch_size`.
    """

    task: Task
    batch_size: int
    multiple: int = 1
    few: int = 0

    @property
    def lengths(self) -> tuple[int, ...]:
        longest = self.task.length
        parts = (2, 3, 4, 6, 8, 12)
        even = (n for n in parts if n * longest % (16 * self.multiple) == 0)
        return (*(n * longest // 16 for n in even if n * longest >= 16 * _SHORTEST), longest)

    def __call__(self, examples: Sequence[Example]) -> dict[str, np.ndarray]:
        """[batch_size, ...] arrays. Missing examples repeat the first with 'weight' 0."""
        size = self.few if len(examples) <= self.few else self.batch_size
        needed = max(example["tokens"].shape[-1] for example in examples)
        length = batching.first_that_holds(self.lengths, needed)
        fill = {**self.task.per_token, "tokens": self.task.vocabulary.pad}
        left = self.task.form.left_padded
        batch = {}
        for name in examples[0]:
            arrays = [example[name] for example in examples]
            if name in fill:
                batch[name] = batching.stack(arrays, length, fill[name], rows=size, left=left)
            else:
                batch[name] = np.stack(arrays + arrays[:1] * (size - len(arrays)))
        weight = (np.arange(size) < len(examples)).astype(np.float32)
        return {**batch, "weight": weight}


class Epochs(Position):
    """An endless iterator over shuffled examples; batch i is a function of (seed, i).

    The last batch of an epoch may be smaller; no example is dropped.
    """

    def __init__(self, examples: Sequence[Example], collate: Collator, seed: int):
        super().__init__()
        self._examples, self._collate, self._seed = examples, collate, seed
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, int))

    @property
    def size(self) -> int:
        """The number of examples."""
        return len(self._examples)

    @property
    def batches_per_epoch(self) -> int:
        return -(-len(self._examples) // self._collate.batch_size)

    def batch_at(self, index: int) -> dict[str, np.ndarray]:
        """Returns batch `index` without advancing the iterator."""
        epoch, place = divmod(index, self.batches_per_epoch)
        if self._order[0] != epoch:
            rng = np.random.default_rng([self._seed, epoch])
            self._order = epoch, rng.permutation(len(self._examples))
        size = self._collate.batch_size
        chosen = self._order[1][place * size : (place + 1) * size]
        return self._collate([self._examples[i] for i in chosen])

    def __next__(self) -> dict[str, np.ndarray]:
        while not self.advance():
            pass
        return self.batch_at(self.index)


def by_length(
    examples: Sequence[Example], collate: Collator
) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
    """Yields (indices, batch) of all examples, shortest first."""
    lengths = [example["tokens"].shape[-1] for example in examples]
    for chosen, _ in batching.by_length(lengths, collate.batch_size):
        yield chosen, collate([examples[i] for i in chosen])
