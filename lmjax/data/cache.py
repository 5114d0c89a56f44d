"""Where prepared data is kept, and how processes and users share it."""

import os
import pathlib
import sys
from collections.abc import Callable
from typing import BinaryIO, TypeVar

from lmjax.errors import ConfigError
from lmjax.locking import acquire

T = TypeVar("T")

_REMEDY = "set config.data.cache_dir or LMJAX_CACHE to a folder of your own with room"


def cache_directory(cache_dir: str) -> pathlib.Path:
    """The config's directory, else $LMJAX_CACHE, else ~/.cache/lmjax.

    Raises:
      ConfigError: there is no home directory.
    """
    chosen = cache_dir or os.environ.get("LMJAX_CACHE") or "~/.cache/lmjax"
    try:
        return pathlib.Path(chosen).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"config.data.cache_dir: '{chosen}': {error}; {_REMEDY}") from error


def prepared(path: pathlib.Path, read: Callable[[], T | None], make: Callable[[], None]) -> T:
    """What `read` finds at `path`, after `make` has put it there where it finds nothing.

    What is there is read without a lock and without a write: a complete cache may be read-only,
    or another user's. Of several processes that find nothing one makes it, the others wait for
    it. The lock of a killed process is free. Where the file system knows no locks, work may be
    done twice; `make` must therefore move whole results into place.

    Raises:
      ConfigError: `path` may not be read, or not be made; as `read` and `make`.
    """
    _check_readable(path)
    if (found := read()) is not None:
        return found
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _open_lock(path.with_name(f".{path.name}.lock")) as file:
            if not acquire(file, wait=False):
                print(f"waiting for another process to prepare {path}", file=sys.stderr, flush=True)
                acquire(file, wait=True)
            if (found := read()) is None:
                make()
                found = read()
    except OSError as error:
        raise ConfigError(
            f"config.data.cache_dir: '{path}' is not prepared and cannot be written"
            f" ({error.strerror or error}); {_REMEDY}"
        ) from error
    if found is None:
        raise ConfigError(f"config.data.cache_dir: '{path}' cannot be read back; {_REMEDY}")
    return found


def _check_readable(path: pathlib.Path) -> None:
    """Refuses what is there and may not be read, before it is made once more in vain."""
    needed = os.R_OK | os.X_OK if os.path.isdir(path) else os.R_OK
    if os.path.lexists(path) and not os.access(path, needed):
        raise ConfigError(
            f"config.data.cache_dir: '{path}' may not be read; have its owner run"
            f" chmod -R a+rX on it, or {_REMEDY}"
        )


def _open_lock(path: pathlib.Path) -> BinaryIO:
    try:
        return path.open("ab")
    except PermissionError:
        if not path.exists():
            raise
        return path.open("rb")  # another user's
