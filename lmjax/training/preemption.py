"""SIGTERM: what schedulers send before they take a machine away."""

import contextlib
import signal
import threading
import types
from typing import Any


class PreemptedError(RuntimeError):
    """The run was asked to stop, and has saved itself; the same command continues it."""


class Preemption(contextlib.AbstractContextManager["Preemption"]):
    """Notes SIGTERM while it is open, so that the loop can save between two steps.

    Attributes:
      requested: whether the signal has come.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: Any = None

    def __enter__(self) -> "Preemption":
        # Python hands signals to its main thread alone.
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def _note(self, number: int, frame: types.FrameType | None) -> None:
        self.requested = True

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
