"""Batches of a table of examples that is held in memory."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from lmjax.data.position import Position
from lmjax.tasks.base import Example, Task
from lmjax.tasks.input_format import pad

_SHORTEST = 16  # tokens; shorter batches would be programs of their own for little


@dataclasses.dataclass(frozen=True)
class Collator:
    """Examples to a batch, as long as the longest of a few lengths makes it.

    Each length is a compiled program of its own: `length`, its half and its quarter.

    Attributes:
      multiple: of which lengths must be multiples.
      few: so many examples at most are a batch of this size; 0 = there is one size.
    """

    task: Task
    batch_size: int
    multiple: int = 1
    few: int = 0

    @property
    def lengths(self) -> tuple[int, ...]:
        longest = self.task.length
        parts = (longest // n for n in (4, 2) if longest % (n * self.multiple) == 0)
        return (*(n for n in parts if n >= _SHORTEST), longest)

    def __call__(self, examples: Sequence[Example]) -> dict[str, np.ndarray]:
        """[batch_size, ...] arrays; too few examples are filled up with 'weight' 0."""
        size = self.few if len(examples) <= self.few else self.batch_size
        filled = [*examples, *[examples[0]] * (size - len(examples))]
        needed = max(example["tokens"].shape[-1] for example in examples)
        length = next(n for n in self.lengths if n >= needed)
        fill = {**self.task.per_token, "tokens": self.task.vocabulary.pad}
        left = self.task.form.left_padded
        batch = {
            name: np.stack(
                [
                    pad(e[name], length, fill[name], left) if name in fill else e[name]
                    for e in filled
                ]
            )
            for name in filled[0]
        }
        weight = (np.arange(size) < len(examples)).astype(np.float32)
        return {**batch, "weight": weight}


class Epochs(Position):
    """An endless iterator over shuffled examples; batch i is a function of (seed, i).

    The last batch of an epoch may be short; nothing is left out.
    """

    def __init__(self, examples: Sequence[Example], collate: Collator, seed: int):
        super().__init__()
        self._examples, self._collate, self._seed = examples, collate, seed
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, int))

    @property
    def size(self) -> int:
        """How many examples there are."""
        return len(self._examples)

    @property
    def batches_per_epoch(self) -> int:
        return -(-len(self._examples) // self._collate.batch_size)

    def batch_at(self, index: int) -> dict[str, np.ndarray]:
        """Batch `index`, without moving."""
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
    """(indices, batch) of all examples, the short ones first."""
    order = sorted(range(len(examples)), key=lambda i: examples[i]["tokens"].shape[-1])
    for start in range(0, len(order), collate.batch_size):
        chosen = order[start : start + collate.batch_size]
        yield chosen, collate([examples[i] for i in chosen])
