"""Command lines of all programs: flags, one-line errors, exit codes.

Exit codes: 0 success, 1 crash, 2 invalid setting, 3 training diverged or a score is not finite, 4
the disk is full or not writable, or a checkpoint is damaged, 75 SIGTERM was received and a
checkpoint saved, or another process of the run was lost (sysexits.h: "temporary failure, try again
later"), 130 interrupted.
"""

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
from lmjax.host import keep_compiled_programs, tune_host_memory
from lmjax.overrides import with_overrides

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)

# A field that identifies a kind of config -> the dataclass of that kind.
_KINDS = {
    "variants": "lmjax.lab.plan.AblationConfig",
    "space": "lmjax.lab.search.SearchConfig",
    "tasks": "lmjax.tasks.multitask.MultitaskConfig",
    "task": "lmjax.tasks.plan.FinetuneConfig",
    "template": "lmjax.evaluation.prompting.PromptingConfig",
    "objective": "lmjax.training.plan.PretrainConfig",
    "smoothing": "lmjax.convert.ngrams.NgramTraining",
}
_OVERRIDE = re.compile(r"--?(no)?config\.([^=]+)(?:=(.*))?", re.DOTALL)
_overrides: dict[str, str] = {}  # parsed from the command line

CONFIG = flags.DEFINE_string(
    "config",
    None,
    "The config: FILE.py or FILE.py:SIZE. --config.field=value overrides any of its fields,"
    " including those that the file leaves at their defaults.",
)
WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run; created, or resumed.")
COORDINATOR = flags.DEFINE_string(
    "coordinator",
    "",
    "For several processes: HOST:PORT of process 0, or 'auto' on TPU pods and Kubernetes."
    " Not needed with SLURM and Open MPI.",
)
PROCESSES = flags.DEFINE_integer("processes", 0, "Number of processes; with HOST:PORT.")
ALLOW_MODULES = flags.DEFINE_list(
    "allow_modules",
    [],
    "Modules other than lmjax, separated by commas, from which opened runs may import classes,"
    " which executes their code.",
)
PROCESS = flags.DEFINE_integer("process", -1, "Index of this process from 0; with HOST:PORT.")


def start(main: Callable[[], None]) -> None:
    """Parses the flags, runs `main`, and exits."""
    tune_host_memory()
    # XLA's C++ code logs to stderr, which would break progress bars.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.ERROR)
    app.run(lambda _: _guarded(main), flags_parser=_parse)


def _guarded(main: Callable[[], None]) -> None:
    # app.run enables log messages of libraries through absl's handler. Their errors are raised as
    # well, so they are reported once.
    logging.disable(logging.ERROR)
    from lmjax.training.checkpoints import CheckpointError
    from lmjax.training.monitor import DivergedError
    from lmjax.training.multihost import LostProcessError, PreemptedError, initialize

    keep_compiled_programs()
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
        _fail("interrupted; rerun the same command to resume from the last checkpoint", 130)


@dataclasses.dataclass(frozen=True)
class Opened:
    """A config file with the overrides of a command line.

    Attributes:
      kind: the dataclass of the config.
      stated: the fields that the file sets, as plain values.
      overrides: dotted names of fields -> text.
      values: `stated` with the overrides, without fields that neither sets.
    """

    kind: type
    stated: dict[str, Any]
    overrides: Mapping[str, str]
    values: dict[str, Any]


def open_config(argument: str, overrides: Mapping[str, str]) -> Opened:
    """Reads a config file.

    Args:
      argument: FILE.py or FILE.py:SIZE.
      overrides: dotted names of fields -> text. Any field of the config's dataclasses can be
        overridden, whether the file sets it or not.

    Raises:
      ConfigError: the file cannot be read, a field does not exist, or its value is invalid.
    """
    file, colon, size = argument.partition(":")
    path = pathlib.Path(file)
    if not path.is_file():
        raise ConfigError(f"--config: cannot read '{file}'; check the path")
    spec = importlib.util.spec_from_file_location("config_file", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"--config: '{file}' is not a Python file; give FILE.py or FILE.py:SIZE")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"--config: '{file}' has no function get_config")
    if colon and not inspect.signature(module.get_config).parameters:
        raise ConfigError(f"--config: '{file}' has no sizes; remove ':{size}'")
    found = module.get_config(size) if colon else module.get_config()
    stated = found.to_dict() if isinstance(found, ConfigDict) else found
    kind = next((kind for field, kind in _KINDS.items() if field in stated), None)
    if kind is None:
        raise ConfigError(f"--config: '{file}' has none of the fields {', '.join(_KINDS)}")
    cls = resolve(kind, "--config")
    return Opened(cls, stated, overrides, with_overrides(cls, stated, overrides))


def opened_config() -> Opened:
    """Opens the config of --config with the overrides.

    Raises:
      ConfigError: --config is missing, or as `open_config`.
    """
    if CONFIG.value is None:
        what = f"config.{next(iter(_overrides))} is a field of one" if _overrides else "give one"
        raise ConfigError(f"--config: missing; {what}, such as --config=configs/bert.py:tiny")
    return open_config(CONFIG.value, _overrides)


def config() -> ConfigDict:
    """Returns the config of --config with the overrides, without fields at their defaults.

    Raises:
      ConfigError: as `opened_config`.
    """
    return _ordered(opened_config().values)


def _ordered(values: Mapping[str, Any]) -> ConfigDict:
    """Creates a ConfigDict whose blocks keep the order of their fields."""
    inner = {k: _ordered(v) if isinstance(v, Mapping) else v for k, v in values.items()}
    return ConfigDict(inner, sort_keys=False)


def split_overrides(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Separates overrides (dotted names -> text) from the other arguments."""
    rest, overrides, waiting = [], dict[str, str](), ""
    for argument in argv:
        found = _OVERRIDE.fullmatch(argument)
        if found is not None:
            no, waiting, value = found.groups()
            overrides.pop(waiting, None)  # the last one wins
            overrides[waiting] = "false" if no else "true" if value is None else value
            waiting = "" if no or value is not None else waiting
        elif waiting and not argument.startswith("-"):  # --config.field value
            overrides[waiting], waiting = argument, ""
        else:
            rest.append(argument)
            waiting = ""
    return rest, overrides


def workdir() -> str:
    """Returns the value of --workdir.

    Raises:
      ConfigError: --workdir is missing.
    """
    if not WORKDIR.value:
        raise ConfigError("--workdir: missing; give a directory for the run, such as runs/bert")
    return WORKDIR.value


def _parse(argv: list[str]) -> list[str]:
    """Parses flags; reports every mistake in one line that names the field."""
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
    """Returns the last nonempty line of an error message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _fail(message: str, code: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def _fail_at_once(message: str, code: int) -> None:
    """Exits without exit handlers, where other threads would hang or report errors."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    os._exit(code)
