"""Several processes as one run: how they find each other, and how a lost one is noticed."""

import contextlib
import os
from collections.abc import Iterator, Mapping

import jax

from lmjax.errors import ConfigError

# A launcher, the variables that jax reads of it, and the one that counts processes.
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
# Seconds without a sign of life after which a process counts as lost. One that dies during a
# step is noticed at once, by its broken connections; this is for machines that vanish, and for
# processes that wait for each other to save.
HEARTBEAT = 30


class LostProcessError(RuntimeError):
    """Another process of the run is gone; what was saved stays, the same command continues.

    Where jax's own watchdog notices first, it aborts the process with a message instead.
    """


def launcher(environment: Mapping[str, str] = os.environ) -> str | None:
    """Which launcher has started this process as one of several, if any."""
    for name, (needed, count) in _LAUNCHERS.items():
        if all(variable in environment for variable in needed) and int(environment[count]) > 1:
            return name
    return None


def join(coordinator: str = "", processes: int = 0, process: int = -1) -> None:
    """Makes this process one of a run's; nothing where it is the only one.

    To be called before anything else of jax. Then `jax.devices()` are those of all processes.

    Args:
      coordinator: 'HOST:PORT' of process 0; 'auto' lets jax find all (TPU pods, and
        Kubernetes with its Python package); '' asks the variables of SLURM and Open MPI.
      processes: how many there are; only with HOST:PORT.
      process: which one this is, from 0; only with HOST:PORT.

    Raises:
      ConfigError: what is given does not go together, or the others cannot be reached.
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
        raise ConfigError(f"--coordinator: the processes do not come together ({first})") from error


@contextlib.contextmanager
def noticing_lost_processes() -> Iterator[None]:
    """Turns what the runtime says when a process is gone into LostProcessError."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or "RESOURCE_EXHAUSTED" in str(error):
            raise
        first = str(error).splitlines()[0]
        raise LostProcessError(
            f"process {jax.process_index()} of {jax.process_count()}: another process is gone or"
            f" cannot be reached ({first}); start all of them again, the run continues from its"
            " last checkpoint"
        ) from error
