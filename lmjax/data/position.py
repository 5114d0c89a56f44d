"""Where a run is in its data."""

from collections.abc import Iterable
from typing import Any


class Position:
    """Counts batches, and knows which are to be passed over.

    What gives batches by their number derives from it, so that a run continues with the next
    one: `advance` in `__next__` says which that is.
    """

    def __init__(self) -> None:
        self._next = 0
        self._skipped: set[int] = set()

    @property
    def index(self) -> int:
        """Which batch came last."""
        return self._next - 1

    def advance(self) -> bool:
        """Goes on by one batch; False where that one is to be passed over."""
        self._next += 1
        return self.index not in self._skipped

    def skip(self, batches: Iterable[int]) -> None:
        """Passes these batches over when their turn comes."""
        self._skipped.update(batches)

    def get_state(self) -> dict[str, Any]:
        """Returns the position, fit for JSON; it holds for any number of processes."""
        return {"next_batch": self._next, "skipped": sorted(self._skipped)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Moves to a position that `get_state` returned; what is to be skipped stays so."""
        self._next = state["next_batch"]
        self._skipped.update(state["skipped"])
