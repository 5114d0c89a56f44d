"""The position of a run in its data."""

from collections.abc import Iterable
from typing import Any


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
