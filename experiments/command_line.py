"""What every program does around its work: flags, errors in one line, exit codes.

Exit codes: 0 done, 1 a crash, 2 a setting that cannot work, 3 training diverged or a score is
not finite, 4 the disk is full or not writable, or a checkpoint on it is damaged, 75 SIGTERM was
received and a checkpoint saved, or another process of the run was lost (sysexits.h: "temporary
failure, try again later"), 130 interrupted.
"""

import ctypes
import dataclasses
import errno
import importlib.util
import inspect
import logging
import os
import pathlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import app, flags
from ml_collections import ConfigDict

from lmjax.configuration import allowing, resolve
from lmjax.errors import ConfigError, NonFiniteError
from lmjax.overrides import with_overrides

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)

# A field that only configs of one kind have, and the dataclass of that kind.
_KINDS = {
    "variants": "lmjax.lab.plan.AblationConfig",
    "space": "lmjax.lab.search.SearchConfig",
    "tasks": "lmjax.tasks.multitask.MultitaskConfig",
    "task": "lmjax.tasks.plan.FinetuneConfig",
    "template": "lmjax.evaluation.prompting.PromptingConfig",
    "objective": "lmjax.training.plan.PretrainConfig",
}
_OVERRIDE = re.compile(r"--?(no)?config\.([^=]+)(?:=(.*))?", re.DOTALL)
_overrides: dict[str, str] = {}  # of the flags that were parsed

CONFIG = flags.DEFINE_string(
    "config",
    None,
    "The run: FILE.py or FILE.py:SIZE; its fields, and those that it leaves at their defaults, as"
    " --config.field=value.",
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


@dataclasses.dataclass(frozen=True)
class Opened:
    """A config file with the overrides of a command line.

    Attributes:
      kind: the dataclass that the config becomes.
      stated: what the file states, as plain values.
      overrides: dotted names of fields -> text.
      values: `stated` with the overrides; what neither names is left out.
    """

    kind: type
    stated: dict[str, Any]
    overrides: Mapping[str, str]
    values: dict[str, Any]


def open_config(argument: str, overrides: Mapping[str, str]) -> Opened:
    """Reads a config file.

    Args:
      argument: FILE.py or FILE.py:SIZE.
      overrides: dotted names of fields -> text. Any field of the dataclasses that the config
        becomes can be named, whether the file states it or not.

    Raises:
      ConfigError: the file cannot be read, or there is no such field or it does not take the value.
    """
    file, colon, size = argument.partition(":")
    path = pathlib.Path(file)
    if not path.is_file():
        raise ConfigError(f"--config: cannot read '{file}'; is the path right?")
    spec = importlib.util.spec_from_file_location("config_file", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"--config: '{file}' is no Python file; give FILE.py or FILE.py:SIZE")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"--config: '{file}' has no function get_config")
    if colon and not inspect.signature(module.get_config).parameters:
        raise ConfigError(f"--config: '{file}' has no sizes; leave ':{size}' out")
    found = module.get_config(size) if colon else module.get_config()
    stated = found.to_dict() if isinstance(found, ConfigDict) else found
    kind = next((kind for field, kind in _KINDS.items() if field in stated), None)
    if kind is None:
        raise ConfigError(f"--config: '{file}' has none of the fields {', '.join(_KINDS)}")
    cls = resolve(kind, "--config")
    return Opened(cls, stated, overrides, with_overrides(cls, stated, overrides))


def opened_config() -> Opened:
    """What --config names, with the overrides.

    Raises:
      ConfigError: none was given; or as `open_config`.
    """
    if CONFIG.value is None:
        what = f"config.{next(iter(_overrides))} is a field of one" if _overrides else "give one"
        raise ConfigError(f"--config: missing; {what}, such as --config=configs/bert.py:tiny")
    return open_config(CONFIG.value, _overrides)


def config() -> ConfigDict:
    """What --config names, with the overrides; fields at their defaults are left out.

    Raises:
      ConfigError: as `opened_config`.
    """
    return _ordered(opened_config().values)


def _ordered(values: Mapping[str, Any]) -> ConfigDict:
    """A ConfigDict whose blocks keep the order of their fields."""
    inner = {k: _ordered(v) if isinstance(v, Mapping) else v for k, v in values.items()}
    return ConfigDict(inner, sort_keys=False)


def split_overrides(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The arguments that are no overrides, and the overrides: dotted names -> text."""
    rest, overrides, waiting = [], dict[str, str](), ""
    for argument in argv:
        found = _OVERRIDE.fullmatch(argument)
        if found is not None:
            no, waiting, value = found.groups()
            overrides.pop(waiting, None)  # the last one counts
            overrides[waiting] = "false" if no else "true" if value is None else value
            waiting = "" if no or value is not None else waiting
        elif waiting and not argument.startswith("-"):  # --config.field value
            overrides[waiting], waiting = argument, ""
        else:
            rest.append(argument)
            waiting = ""
    return rest, overrides


def workdir() -> str:
    """The value of --workdir.

    Raises:
      ConfigError: it was not given.
    """
    if not WORKDIR.value:
        raise ConfigError("--workdir: missing; give a directory for the run, such as runs/bert")
    return WORKDIR.value


def _parse(argv: list[str]) -> list[str]:
    """flags.FLAGS(argv), with every mistake told in one line that names the field."""
    try:
        expanded = flags.FLAGS.read_flags_from_files(argv, force_gnu=False)
        own, overrides = split_overrides(expanded)
        _overrides.clear()
        _overrides.update(overrides)
        rest = flags.FLAGS(own)
        if flags.FLAGS.is_parsed() and len(rest) > 1:
            _fail(f"'{rest[1]}': not a flag; flags look like --config.field=value", 2)
        return rest
    except (flags.Error, ValueError, TypeError, OSError) as error:
        _fail(_last_line(error), 2)
    raise AssertionError


def _last_line(error: BaseException) -> str:
    """The last line of a message that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _fail(message: str, code: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def _fail_at_once(message: str, code: int) -> None:
    """Without what is done at exit: other threads wait for what will not come, or cry for it."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    os._exit(code)
