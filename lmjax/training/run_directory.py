"""The directory of a run: its config, versions, lock and metrics.jsonl."""

import contextlib
import datetime
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import ml_collections

from lmjax.atomic import write_json, write_text
from lmjax.configuration import comparable, filled, flattened
from lmjax.data.tokenizers import Tokenizer
from lmjax.errors import ConfigError
from lmjax.locking import held

_LOCK = ".lock"
_PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "ml-collections",
    "numpy",
    "grain",
    "tensorflow-datasets",
    "tokenizers",
)

# Called with a step and its metrics under the names that TensorBoard shows, such as 'train/loss'.
OnMetrics = Callable[[int, dict[str, float]], None]


class RunDirectory:
    """A directory that belongs to one config, and to one process at a time.

    Attributes:
      path: of the directory.
      checkpoints: path of its checkpoints; `Checkpoints` creates it.
    """

    def __init__(
        self,
        path: str | pathlib.Path,
        config: ml_collections.ConfigDict,
        kind: Any = None,
    ):
        """Checks that the directory is free or belongs to this run already; writes nothing.

        Args:
          path: of the directory.
          config: plain values; config.json holds them with the defaults of what they leave out.
          kind: the dataclass that the config becomes. Its MAY_CHANGE names dotted fields, such as
            `training.steps`, or whole blocks of fields, that may differ from those that the run
            started with; its classmethod `updated`, if any, gives a stored config the names that
            fields have now. None: plain values without defaults, none of which may differ.

        Raises:
          ConfigError: the directory belongs to another config, or cannot be written to.
        """
        self.path = pathlib.Path(path)
        self.checkpoints = self.path / "checkpoints"
        # Through JSON, so that it compares equal to what is read back.
        try:
            self._stated = json.loads(json.dumps(config.to_dict()))
            self._config = self._stated
            if kind is not None:
                self._config = json.loads(json.dumps(filled(kind, config)))
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"config: contains a value that is not plain data ({error})"
            ) from error
        self._kind = kind
        self._check()

    @contextlib.contextmanager
    def locked(self, wait: bool = False) -> Iterator[None]:
        """Locks the directory for this run; its first process holds the lock.

        Creates the directory, and removes it again if nothing was written to it.

        Args:
          wait: for the lock, instead of raising.

        Raises:
          ConfigError: another process has the lock, or the directory now belongs to another
            config.
        """
        if jax.process_index() != 0:
            yield
            return
        made = [place for place in (self.path, *self.path.parents) if not place.exists()]
        self._make()
        lock = self.path / _LOCK
        with held(lock, wait) as holder:
            if holder:
                raise ConfigError(
                    f"--workdir: '{self.path}' is in use by {holder}; wait until it ends, or use"
                    " another --workdir"
                )
            self._check()  # again: another process may have started a run here in the meantime
            try:
                yield
            finally:
                with contextlib.suppress(OSError):  # another process has written there
                    if made and [child.name for child in self.path.iterdir()] == [_LOCK]:
                        lock.unlink()
                        for place in made:
                            place.rmdir()

    def claim(self, tokenizer: Tokenizer | None = None) -> None:
        """Writes config.json, versions.json and tokenizer.json, from the first process.

        Call it after all checks: from then on the directory belongs to this run.
        """
        self._make()
        if jax.process_index() == 0:
            if tokenizer is not None:
                tokenizer.save(self.path / "tokenizer.json")
            write_json(self.path / "versions.json", versions())
            write_json(self.path / "config.json", self._config)

    def _check(self) -> None:
        here = next(place for place in (self.path, *self.path.parents) if place.exists())
        if not here.is_dir():
            raise ConfigError(f"--workdir: '{here}' is a file; give a directory")
        if not os.access(here, os.W_OK | os.X_OK):
            raise ConfigError(f"--workdir: '{here}' is not writable; use another --workdir")
        started_with = self._read_config()
        if started_with is not None and self._has_work():
            self._refuse_other_config(started_with)

    def _make(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"--workdir: cannot make '{self.path}' ({error.strerror}); use another --workdir"
            ) from error

    def _read_config(self) -> dict[str, Any] | None:
        file = self.path / "config.json"
        if not file.exists():
            for name in ("checkpoints", "metrics.jsonl"):
                if (self.path / name).exists():
                    raise ConfigError(
                        f"--workdir: '{self.path}' holds {name} but no config.json; "
                        "use another --workdir"
                    )
            return None
        try:
            return json.loads(file.read_text())
        except ValueError as error:
            raise ConfigError(
                f"--workdir: '{file}' is not JSON ({error}); use another --workdir"
            ) from error

    def _has_work(self) -> bool:
        """Whether the directory has work to lose: a run that failed at its first step has none."""
        metrics = self.path / "metrics.jsonl"
        return (
            any(self.path.glob("checkpoints/*"))
            or (metrics.exists() and any(x.get("split") == "train" for x in read_metrics(metrics)))
            or any((self.path / name).exists() for name in ("events.jsonl", "cells", "study.log"))
        )

    def _refuse_other_config(self, started_with: Mapping[str, Any]) -> None:
        old, new, missing = started_with, self._config, "(absent)"
        may_change: tuple[str, ...] = ()
        if self._kind is not None:
            if hasattr(self._kind, "updated"):
                started_with = self._kind.updated(started_with)
            # What was stored need not state every field.
            old, new = (
                json.loads(json.dumps(comparable(self._kind, values, self._stated)))
                for values in (started_with, self._stated)
            )
            may_change = self._kind.MAY_CHANGE
        old, new = flattened(old), flattened(new)
        differing = [
            name
            for name in sorted({*old, *new})
            if old.get(name, missing) != new.get(name, missing)
            and not any(f"{name}.".startswith(f"{field}.") for field in may_change)
        ]
        if differing:
            shown = ", ".join(
                f"config.{name}: {new.get(name, missing)!r}, was {old.get(name, missing)!r}"
                for name in differing[:3]
            )
            more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
            raise ConfigError(
                f"{shown}{more}: '{self.path}' belongs to a run of another config; "
                "use another --workdir"
            )


def versions() -> dict[str, Any]:
    """Versions of the programs and the machine, which may explain a difference of results."""
    found: dict[str, Any] = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    found["git_commit"] = _git_commit()
    found["device_kind"] = jax.devices()[0].device_kind
    found["device_count"] = jax.device_count()
    found["process_count"] = jax.process_count()
    found["started"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return found


def _summary_writer() -> Any:
    """Imports tensorboardX without PyTorch, which takes seconds to import and is not needed."""
    hidden = {} if "torch" in sys.modules else {"torch": None}
    sys.modules.update(hidden)  # type: ignore[arg-type]
    try:
        from tensorboardX import SummaryWriter
    finally:
        for name in hidden:
            del sys.modules[name]
    return SummaryWriter


class MetricsWriter:
    """Appends metrics to `metrics.jsonl` and to TensorBoard's event files.

    Each line is a JSON object: step, split, time (seconds since 1970) and the metrics, with null
    for numbers that are not finite.
    """

    def __init__(
        self, directory: str | pathlib.Path, step: int = 0, on_metrics: OnMetrics | None = None
    ):
        """Opens the files of a run that continues from `step`.

        Drops lines of later steps, which a killed run wrote after its last checkpoint, so that
        the file has every step once. From step 0 it drops all lines.

        Args:
          directory: of the run.
          step: updates made when the restored checkpoint was saved; 0 for a new run.
          on_metrics: is called after each line, in the first process.
        """
        self._on_metrics = on_metrics
        self._file = None
        if jax.process_index() != 0:
            return
        path = pathlib.Path(directory) / "metrics.jsonl"
        if path.exists():
            kept = [_encode(line) for line in read_metrics(path) if line["step"] <= step and step]
            write_text(path, "".join(kept))
        # Line buffered: a killed process loses no line that it has written.
        self._file = path.open("a", buffering=1)
        self._events = _summary_writer()(str(directory), purge_step=step + 1 if step else 0)

    def write(self, step: int, metrics: Mapping[str, Any], split: str = "train") -> None:
        """Writes one line. Metrics may be jax arrays, which it waits for."""
        if self._file is None:
            return
        numbers = {name: float(value) for name, value in metrics.items()}
        self._file.write(_encode({"step": step, "split": split, "time": time.time(), **numbers}))
        for name, value in numbers.items():
            self._events.add_scalar(f"{split}/{name}", value, step)
        if self._on_metrics is not None:
            self._on_metrics(step, {f"{split}/{name}": x for name, x in numbers.items()})

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._events.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        self.close()


def read_metrics(path: str | pathlib.Path) -> list[dict[str, Any]]:
    """Reads metrics.jsonl; `path` is the file or its directory. null is read as NaN.

    Skips a last line that a killed process left unfinished.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        path = path / "metrics.jsonl"
    lines = path.read_text().splitlines()
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            if number == len(lines):
                break
            raise ConfigError(f"{path}:{number}: not JSON; is it the file of a run?") from None
        found.append({name: math.nan if v is None else v for name, v in values.items()})
    return found


def _encode(line: Mapping[str, Any]) -> str:
    plain = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in line.items()
    }
    return json.dumps(plain, allow_nan=False) + "\n"


def _git_commit() -> str | None:
    """The commit of the checkout that tracks this file, with `+` for local changes, or None."""
    here = pathlib.Path(__file__).resolve()

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here.parent), *arguments]
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return result.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None
