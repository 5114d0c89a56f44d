"""What a run leaves behind and shows: its directory, metrics, progress, plots."""

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
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import ml_collections
import rich.console
import rich.progress

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
_SECONDS_BETWEEN_LINES = 15.0


class RunDirectory:
    """A directory that belongs to one config, and to one process at a time.

    Attributes:
      path: the directory.
      checkpoints: where its checkpoints go; made by whoever writes them.
    """

    def __init__(
        self,
        path: str | pathlib.Path,
        config: ml_collections.ConfigDict,
        kind: Any = None,
    ):
        """Finds that the directory is free, or that it is this run's already; writes nothing.

        Args:
          path: of the directory.
          config: plain values; config.json holds them with the defaults of what they leave out.
          kind: the dataclass that the config becomes. Its MAY_CHANGE names the dotted fields, such
            as `training.steps`, that may differ from those the run was begun with. None: plain
            values without defaults, none of which may differ.

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
            raise ConfigError(f"config: holds what is no plain data ({error})") from error
        self._kind = kind
        self._check()

    @contextlib.contextmanager
    def alone(self, wait: bool = False) -> Iterator[None]:
        """Within it, no other process has the directory; of a run's processes the first holds it.

        The directory is made, and removed again if nothing was written to it.

        Args:
          wait: until another process leaves it.

        Raises:
          ConfigError: another process has it; or it has become that of another config.
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
                    f"--workdir: '{self.path}' is in use by {holder}; wait until that ends, or use"
                    " another --workdir"
                )
            self._check()  # again: another process may have begun a run here meanwhile
            try:
                yield
            finally:
                with contextlib.suppress(OSError):  # someone else has put something there
                    if made and [child.name for child in self.path.iterdir()] == [_LOCK]:
                        lock.unlink()
                        for place in made:
                            place.rmdir()

    def claim(self, tokenizer: Tokenizer | None = None) -> None:
        """Writes the run's config.json, versions.json and tokenizer.json, from the first process.

        To be called once all that can be checked was: from now on the directory is this run's.
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
        begun_with = self._read_config()
        if begun_with is not None and self._has_work():
            self._refuse_other_config(begun_with)

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
                f"--workdir: '{file}' is no JSON ({error}); use another --workdir"
            ) from error

    def _has_work(self) -> bool:
        """Whether anything would be lost: a run that failed at its first step leaves nothing."""
        metrics = self.path / "metrics.jsonl"
        return (
            any(self.path.glob("checkpoints/*"))
            or (metrics.exists() and any(x.get("split") == "train" for x in read_metrics(metrics)))
            or any((self.path / name).exists() for name in ("events.jsonl", "cells", "study.log"))
        )

    def _refuse_other_config(self, begun_with: Mapping[str, Any]) -> None:
        old, new, missing, may_change = begun_with, self._config, "(absent)", ()
        if self._kind is not None:
            # What was stored need not state every field.
            old, new = (
                json.loads(json.dumps(comparable(self._kind, values, self._stated)))
                for values in (begun_with, self._stated)
            )
            may_change = self._kind.MAY_CHANGE
        old, new = flattened(old), flattened(new)
        differing = [
            name
            for name in sorted({*old, *new})
            if old.get(name, missing) != new.get(name, missing) and name not in may_change
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
    """Everything about the programs and the machine that could explain a number."""
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


class MetricsWriter:
    """Appends metrics to `metrics.jsonl` and to TensorBoard's event files.

    One JSON object a line: step, split, time (seconds since 1970) and the metrics; null
    where a number was not finite.
    """

    def __init__(self, directory: str | pathlib.Path, step: int = 0):
        """Opens the files of a run that goes on from `step`.

        Lines of later steps, which a killed run wrote after its last checkpoint, are
        dropped, so that the file has every step once; from step 0 all lines are.

        Args:
          directory: the run's.
          step: updates made when the restored checkpoint was saved; 0 for a new run.
        """
        self._file = None
        if jax.process_index() != 0:
            return
        from tensorboardX import SummaryWriter  # slow to import

        path = pathlib.Path(directory) / "metrics.jsonl"
        if path.exists():
            kept = [_encode(line) for line in read_metrics(path) if line["step"] <= step and step]
            write_text(path, "".join(kept))
        # Line buffered: a killed process loses no line it has written.
        self._file = path.open("a", buffering=1)
        self._events = SummaryWriter(str(directory), purge_step=step + 1 if step else 0)

    def write(self, step: int, metrics: Mapping[str, Any], split: str = "train") -> None:
        """Writes one line. Numbers may be jax arrays; that waits for them."""
        if self._file is None:
            return
        numbers = {name: float(value) for name, value in metrics.items()}
        self._file.write(_encode({"step": step, "split": split, "time": time.time(), **numbers}))
        for name, value in numbers.items():
            self._events.add_scalar(f"{split}/{name}", value, step)

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
    """The lines of a metrics.jsonl, or of the one in the directory `path`; null as NaN.

    A last line that a killed process left unfinished is passed over.
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
            raise ConfigError(f"{path}:{number}: no JSON; is it the file of a run?") from None
        found.append({name: math.nan if v is None else v for name, v in values.items()})
    return found


class TrainingProgress:
    """Shows how far training is: a bar on a terminal, else a line every 15 seconds.

    Writes to stderr, from the first process only.
    """

    def __init__(self, total: int, description: str, start: int = 0):
        """Shows `start` of `total` steps; the time left is reckoned from the steps since."""
        self._total, self._description = total, description
        self._start, self._step = start, start
        self._began = self._last_line = time.monotonic()
        self._quiet = jax.process_index() != 0
        console = rich.console.Console(stderr=True)
        self._bar: rich.progress.Progress | None = None
        if console.is_terminal and not self._quiet:
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("{task.description}"),
                rich.progress.BarColumn(),
                rich.progress.MofNCompleteColumn(),
                rich.progress.TextColumn("{task.fields[report]}"),
                console=console,
            )
            self._task = self._bar.add_task(description, total=total, completed=start, report="")

    def update(self, step: int, loss: float, tokens_per_second: float) -> None:
        """Reports that `step` updates are made."""
        self._step = step
        if self._quiet:
            return
        now = time.monotonic()
        report = self._report(now, loss, tokens_per_second)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, report=report)
        elif now - self._last_line >= _SECONDS_BETWEEN_LINES or step == self._total:
            self._last_line = now
            line = f"{self._description}: step {step}/{self._total}  {report}"
            print(line.rstrip(), file=sys.stderr, flush=True)

    def _report(self, now: float, loss: float, tokens_per_second: float) -> str:
        parts = [f"loss {loss:.4f}", f"{tokens_per_second:,.0f} tokens/s"]
        done = self._step - self._start
        if done > 0:
            left = round((now - self._began) / done * (self._total - self._step))
            parts.append(f"{datetime.timedelta(seconds=left)} left")
        return "  ".join(parts)

    def __enter__(self) -> "TrainingProgress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def wide_console(stderr: bool = False) -> rich.console.Console:
    """A console; where the output is no terminal, wide enough for a table of parameters."""
    console = rich.console.Console(stderr=stderr)
    return console if console.is_terminal else rich.console.Console(stderr=stderr, width=120)


def _encode(line: Mapping[str, Any]) -> str:
    plain = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in line.items()
    }
    return json.dumps(plain, allow_nan=False) + "\n"


def _git_commit() -> str | None:
    """Commit of the checkout this file is tracked in, `+` for local changes; else None."""
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
