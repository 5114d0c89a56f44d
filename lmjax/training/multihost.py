"""Several processes as one run: initialization, lost processes, and preemption by SIGTERM."""

import contextlib
import os
import signal
import threading
import types
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax.experimental import multihost_utils

from lmjax.errors import ConfigError

# Each launcher, the environment variables that jax reads, and the one with the process count.
_LAUNCHERS = {
    "SLURM": (
        (
            "SLURM_JOB_ID",
            "SLURM_STEP_NODELIST",
            "SLURM_NTASKS",
            "SLURM_PROCID",
            "SLURM_LOCALID",
        ),
        "SLURM_NTASKS",
    ),
    "Open MPI": (("OMPI_MCA_orte_hnp_uri", "OMPI_COMM_WORLD_SIZE"), "OMPI_COMM_WORLD_SIZE"),
}
# Seconds without a heartbeat after which a process counts as lost. The others notice a process
# that dies during a step at once, by its broken connections. The timeout covers machines that
# vanish and processes that wait for each other to save.
HEARTBEAT = 30


class LostProcessError(RuntimeError):
    """Another process of the run was lost; saved checkpoints stay, and a rerun resumes.

    If jax's own watchdog notices first, it aborts the process with a message instead.
    """


def launcher(environment: Mapping[str, str] = os.environ) -> str | None:
    """The name of the launcher that started this process as one of several, or None."""
    for name, (needed, count) in _LAUNCHERS.items():
        if all(variable in environment for variable in needed) and int(environment[count]) > 1:
            return name
    return None


def initialize(coordinator: str = "", processes: int = 0, process: int = -1) -> None:
    """Connects this process to the others of the run; does nothing in a single process.

    Call it before any other function of jax. Then `jax.devices()` are those of all processes.

    Args:
      coordinator: 'HOST:PORT' of process 0; 'auto' lets jax find it (TPU pods, and Kubernetes
        with its Python package); '' reads the variables of SLURM and Open MPI.
      processes: the number of processes; only with HOST:PORT.
      process: the index of this process, from 0; only with HOST:PORT.

    Raises:
      ConfigError: the arguments contradict each other, or the others cannot be reached.
    """
    explicit = coordinator not in ("", "auto")
    if explicit:
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdigit():
            raise ConfigError(f"--coordinator: '{coordinator}' is not HOST:PORT")
        if processes < 1 or not 0 <= process < processes:
            raise ConfigError(
                f"--process: {process} of --processes={processes}; give 0 to processes - 1"
            )
    elif processes or process >= 0:
        raise ConfigError("--processes: needs --coordinator=HOST:PORT, that of process 0")
    elif not coordinator and launcher() is None:
        return
    try:
        jax.distributed.initialize(
            coordinator_address=coordinator if explicit else None,
            num_processes=processes if explicit else None,
            process_id=process if explicit else None,
            heartbeat_timeout_seconds=HEARTBEAT,
        )
    except (RuntimeError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise ConfigError(f"--coordinator: cannot connect the processes ({first})") from error


@contextlib.contextmanager
def detect_lost_processes() -> Iterator[None]:
    """Raises LostProcessError for the runtime errors that a lost process causes."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or "RESOURCE_EXHAUSTED" in str(error):
            raise
        first = str(error).splitlines()[0]
        raise LostProcessError(
            f"process {jax.process_index()} of {jax.process_count()}: another process was lost or"
            f" cannot be reached ({first}); restart all processes to resume from the last"
            " checkpoint"
        ) from error


class PreemptedError(RuntimeError):
    """The run received SIGTERM and saved a checkpoint; the same command resumes it."""


class Preemption(contextlib.AbstractContextManager["Preemption"]):
    """Records SIGTERM while it is open, so that the loop can save between two steps.

    Schedulers send SIGTERM before they take a machine away.
    """

    def __init__(self) -> None:
        self._received = False
        self._previous: Any = None

    def requested(self, step: int) -> bool:
        """Whether to stop after `step`; the answer is the same in all processes.

        With several processes one signal is enough: jax's runtime, which handles the signal
        then, makes all processes agree on a step that none has passed.
        """
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._received

    def __enter__(self) -> "Preemption":
        # Python delivers signals to the main thread only.
        alone = jax.process_count() == 1
        if alone and threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._record)
        return self

    def _record(self, number: int, frame: types.FrameType | None) -> None:
        self._received = True

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
