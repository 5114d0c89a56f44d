"""What every program does around its work: flags, errors in one line, exit codes.

Exit codes: 0 done, 1 a crash, 2 a setting that cannot work, 3 training diverged or a score is
not finite, 4 the disk is full or not writable, or a checkpoint on it is damaged, 75 SIGTERM was
received and a checkpoint saved, or another process of the run was lost (sysexits.h: "temporary
failure, try again later"), 130 interrupted.
"""

import ctypes
import errno
import logging
import os
import sys
from collections.abc import Callable, Sequence

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from lmjax.configuration import allowing
from lmjax.errors import ConfigError, NonFiniteError

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The run: FILE.py or FILE.py:SIZE; its fields as --config.field=value."
)
WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run; made, or continued.")
COORDINATOR = flags.DEFINE_string(
    "coordinator",
    "",
    "Of several processes: HOST:PORT of process 0, or 'auto' on TPU pods and Kubernetes."
    " SLURM and Open MPI need none.",
)
PROCESSES = flags.DEFINE_integer("processes", 0, "How many there are; with HOST:PORT.")
ALLOW_MODULES = flags.DEFINE_list(
    "allow_modules",
    [],
    "Modules, with commas, from which a run that is opened may name classes: their code is run."
    " Others than lmjax are refused.",
)
PROCESS = flags.DEFINE_integer("process", -1, "Which of them this is, from 0; with HOST:PORT.")


def start(main: Callable[[], None]) -> None:
    """Parses the flags, runs `main`, and exits."""
    tune_host_memory()
    # XLA's C++ side logs to stderr, in the middle of a progress bar.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.ERROR)
    app.run(lambda _: _guarded(main), flags_parser=_parse)


def tune_host_memory() -> bool:
    """Keeps freed memory in the process. Call it before jax creates its first array.

    XLA's CPU backend allocates its scratch memory anew for every step. By default glibc maps and
    unmaps such large blocks, and each step pays for zeroing every page: a fifth to a half of the
    time of a step. This makes glibc serve all blocks from one heap that never shrinks, which costs
    address space and keeps the peak of memory until the process ends. It does nothing without
    glibc on Linux.

    Returns:
      Whether glibc accepted the settings.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):  # musl ignores mallopt
        return False
    settings = (
        (-4, 0),  # M_MMAP_MAX: no block gets a mapping of its own
        (-1, -1),  # M_TRIM_THRESHOLD: the heap never shrinks
        (-2, 256 << 20),  # M_TOP_PAD: it grows by 256 MiB at a time
        (-8, 1),  # M_ARENA_MAX: one heap for all threads
    )
    return all([libc.mallopt(name, value) == 1 for name, value in settings])


def _guarded(main: Callable[[], None]) -> None:
    # Libraries tell what they do through absl's handler, which app.run has just made talkative;
    # what goes wrong in them is raised, too, and told once.
    logging.disable(logging.ERROR)
    from lmjax.training.checkpoints import CheckpointError
    from lmjax.training.monitor import DivergedError
    from lmjax.training.multihost import LostProcessError, PreemptedError, initialize

    try:
        initialize(COORDINATOR.value, PROCESSES.value, PROCESS.value)
        with allowing(ALLOW_MODULES.value):
            main()
    except ConfigError as error:
        _fail(str(error), 2)
    except CheckpointError as error:
        _fail_at_once(str(error), 4)
    except OSError as error:
        if error.errno not in _DISK:
            raise
        _fail_at_once(f"{error.filename or WORKDIR.value}: {error.strerror}", 4)
    except (DivergedError, NonFiniteError) as error:
        _fail(str(error), 3)
    except PreemptedError as error:
        _fail(str(error), 75)
    except LostProcessError as error:
        _fail_at_once(str(error), 75)
    except KeyboardInterrupt:
        _fail("interrupted; the same command continues from the last checkpoint", 130)


def config() -> ConfigDict:
    """The config of --config with its overrides.

    Raises:
      ConfigError: none was given, or its file cannot be read.
    """
    value = CONFIG.value
    if value is None:
        raise ConfigError("--config: missing; give one, such as --config=configs/bert.py:tiny")
    if not isinstance(value, ConfigDict):
        path = _argument("config") or ""
        raise ConfigError(f"--config: cannot read '{path.split(':')[0]}'; is the path right?")
    return value


def workdir() -> str:
    """The value of --workdir.

    Raises:
      ConfigError: it was not given.
    """
    if not WORKDIR.value:
        raise ConfigError("--workdir: missing; give a directory for the run, such as runs/bert")
    return WORKDIR.value


def size_of(sizes: Sequence[str], wanted: str) -> str:
    """The size that a config file was asked for after the colon, checked."""
    if wanted not in sizes:
        raise ConfigError(f"--config: no size '{wanted}'; sizes: {', '.join(sizes)}")
    return wanted


def _parse(argv: list[str]) -> list[str]:
    """flags.FLAGS(argv), with every mistake told in one line that names the field."""
    try:
        rest = flags.FLAGS(argv)
        if flags.FLAGS.is_parsed() and len(rest) > 1:
            _fail(f"'{rest[1]}': not a flag; flags look like --config.field=value", 2)
        return rest
    except AttributeError as error:
        _fail(_unknown_field(argv, error), 2)
    except flags.Error as error:
        _fail(_last_line(error), 2)
    except (ValueError, TypeError, OSError) as error:
        _fail(_last_line(error), 2)
    raise AssertionError


def _unknown_field(argv: Sequence[str], error: AttributeError) -> str:
    """Names the override that no field answers to; ml_collections names its last part."""
    for argument in argv:
        path = argument.lstrip("-").split("=")[0]
        name = path.split(".")[-1]
        if path.startswith("config.") and f"'{name}'" in str(error).replace('"', "'"):
            hint = ""
            if "Did you mean" in str(error):
                meant = str(error).split('Did you mean "')[1].split('"')[0]
                hint = f"; did you mean '{meant}'?"
            return f"{path}: unknown field{hint}"
    return _last_line(error)


def _last_line(error: BaseException) -> str:
    """The last line of a message that says something; ml_collections appends tracebacks."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    message = lines[-1] if lines else type(error).__name__
    return message.removeprefix("lmjax.errors.ConfigError: ")


def _argument(name: str) -> str | None:
    for argument in sys.argv[1:]:
        if argument.lstrip("-").startswith(f"{name}="):
            return argument.split("=", 1)[1]
    return None


def _fail(message: str, code: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def _fail_at_once(message: str, code: int) -> None:
    """Without what is done at exit: other threads wait for what will not come, or cry for it."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    os._exit(code)
