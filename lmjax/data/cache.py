"""The cache of prepared data, shared by processes and users."""

import os
import pathlib
import sys
from collections.abc import Callable
from typing import BinaryIO, TypeVar

from lmjax.errors import ConfigError
from lmjax.host import CACHE_REMEDY
from lmjax.locking import acquire

T = TypeVar("T")


def prepared(path: pathlib.Path, read: Callable[[], T | None], make: Callable[[], None]) -> T:
    """Returns the result of `read`, calling `make` first if there is no data at `path`.

    Existing data is read without locks or writes, so a complete cache may be read-only or belong
    to another user. If several processes need missing data, one of them makes it while the others
    wait. A killed process releases its lock. On file systems without locks, work may be done twice,
    so `make` must move complete results into place atomically.

    Args:
      path: path of the data.
      read: returns the data, or None if it is missing or incomplete.
      make: writes the data to `path`.

    Raises:
      ConfigError: `path` cannot be read or written; also raised by `read` and `make`.
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
            f" ({error.strerror or error}); {CACHE_REMEDY}"
        ) from error
    if found is None:
        raise ConfigError(f"config.data.cache_dir: '{path}' cannot be read back; {CACHE_REMEDY}")
    return found


def _check_readable(path: pathlib.Path) -> None:
    """Raises ConfigError if `path` exists but is not readable, before making it again in vain."""
    needed = os.R_OK | os.X_OK if os.path.isdir(path) else os.R_OK
    if os.path.lexists(path) and not os.access(path, needed):
        raise ConfigError(
            f"config.data.cache_dir: no permission to read '{path}'; ask its owner to run"
            f" chmod -R a+rX on it, or {CACHE_REMEDY}"
        )


def _open_lock(path: pathlib.Path) -> BinaryIO:
    try:
        return path.open("ab")
    except PermissionError:
        if not path.exists():
            raise
        return path.open("rb")  # it belongs to another user
