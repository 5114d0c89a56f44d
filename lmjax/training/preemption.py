"""SIGTERM: what schedulers send before they take a machine away."""

import contextlib
import signal
import threading
import types
from typing import Any

import jax
from jax.experimental import multihost_utils


class PreemptedError(RuntimeError):
    """The run was asked to stop, and has saved itself; the same command continues it."""


class Preemption(contextlib.AbstractContextManager["Preemption"]):
    """Notes SIGTERM while it is open, so that the loop can save between two steps."""

    def __init__(self) -> None:
        self._noted = False
        self._before: Any = None

    def requested(self, step: int) -> bool:
        """Whether to stop after `step`, the same in all processes.

        Of several processes it is enough that one gets the signal: jax's runtime, which
        listens to it then, has them agree on a step that none has passed.
        """
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._noted

    def __enter__(self) -> "Preemption":
        # Python hands signals to its main thread alone.
        alone = jax.process_count() == 1
        if alone and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def _note(self, number: int, frame: types.FrameType | None) -> None:
        self._noted = True

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
