"""Batches of rows of a source, implemented with grain."""

from collections.abc import Iterable
from typing import Any

import grain
import numpy as np

from lmjax.data.examples.source import Examples, Source, Specials, Store
from lmjax.errors import ConfigError


class Position:
    """Counts batches and keeps track of batches to skip.

    Base class of iterators over numbered batches, so that a resumed run continues with the next
    batch. `__next__` must call `advance`.
    """

    def __init__(self) -> None:
        self._next = 0
        self._skipped: set[int] = set()

    @property
    def index(self) -> int:
        """Index of the last batch."""
        return self._next - 1

    def advance(self) -> bool:
        """Advances by one batch; returns False if that batch is to be skipped."""
        self._next += 1
        return self.index not in self._skipped

    def skip(self, batches: Iterable[int]) -> None:
        """Marks these batches to be skipped."""
        self._skipped.update(batches)

    def get_state(self) -> dict[str, Any]:
        """Returns the position as JSON values, valid for any number of processes."""
        return {"next_batch": self._next, "skipped": sorted(self._skipped)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Moves to a position from `get_state`; batches marked to be skipped stay marked."""
        self._next = state["next_batch"]
        self._skipped.update(state["skipped"])


class Loader(Position):
    """An infinite iterator over this process's rows of each global batch.

    Global batch i is a pure function of (store, examples, batch_size, seed, split, i). It does not
    depend on the number of processes or on where the run was resumed. Process p has its rows
    [p * batch_size / process_count, (p + 1) * batch_size / process_count). Every epoch is
    reshuffled over the whole corpus, except for the contiguous streams of `SegmentStream`; a batch
    may contain the end of one epoch and the start of the next.

    A batch is a dict of int32 arrays with leading axis batch_size / process_count; the arrays
    depend on the type of the examples.
    """

    def __init__(
        self,
        examples: Examples,
        store: Store,
        vocabulary: Specials,
        *,
        batch_size: int,
        seed: int,
        split: str = "train",
        process_index: int = 0,
        process_count: int = 1,
        shuffle: bool = True,
    ) -> None:
        """Prepares the examples.

        Args:
          batch_size: rows of a global batch.
          seed: in [0, 2**32).
          split: 'train', 'validation', ...; each split gets different draws for the same seed.
          shuffle: whether rows are shuffled. Without shuffling, batches read the source in order;
            with the same seed they are the same in every run, as needed for evaluation.

        Raises:
          ConfigError: a field is out of range, or the corpus yields less than one batch.
        """
        if batch_size < 1:
            raise ConfigError(f"config.training.batch_size: {batch_size} is not positive; use >= 1")
        if batch_size % process_count:
            raise ConfigError(
                f"config.training.batch_size: {batch_size} rows cannot be divided among "
                f"{process_count} processes; use a multiple"
            )
        if not 0 <= seed < 2**32:
            raise ConfigError(f"config.seed: {seed} is out of range; use 0 to 2**32 - 1")
        source = examples.source(store, vocabulary, seed=seed, split=split, rows=batch_size)
        rows: grain.MapDataset = _Rows(source)
        if shuffle and not source.ordered:
            rows = rows.seed(seed).shuffle()
        local = batch_size // process_count
        rows = _Share(rows.repeat(), batch_size, process_index * local, local)
        self._batches = rows.batch(local, drop_remainder=True)
        self._batches_per_epoch = len(source) // batch_size
        super().__init__()
        self._iterator: Any = None

    @property
    def batches_per_epoch(self) -> int:
        """Number of complete global batches per epoch, at least 1."""
        return self._batches_per_epoch

    def batch_at(self, index: int) -> dict[str, np.ndarray]:
        """Returns batch `index` without advancing the iterator."""
        return self._batches[index]

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if self._iterator is None:
            options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
            self._iterator = iter(self._batches[self._next :].to_iter_dataset(options))
        while True:
            batch = next(self._iterator)
            if self.advance():
                return batch

    def set_state(self, state: dict[str, Any]) -> None:
        self.close()
        super().set_state(state)

    def close(self) -> None:
        """Stops the prefetching threads; reading the next batch restarts them."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None


class _Rows(grain.MapDataset):
    """Wraps a source as a grain dataset with the true index; grain's wrapper takes it modulo."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: Any) -> Any:
        return self.slice(index) if isinstance(index, slice) else self._source[index]


class _Share(grain.MapDataset):
    """Selects `count` rows from `first` on out of every `batch_size` rows."""

    def __init__(self, parent: grain.MapDataset, batch_size: int, first: int, count: int) -> None:
        super().__init__(parent)
        self._batch_size, self._first, self._count = batch_size, first, count

    def __len__(self) -> int:
        return len(self._parent) // self._batch_size * self._count

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        batch, row = divmod(index, self._count)
        return self._parent[batch * self._batch_size + self._first + row]
