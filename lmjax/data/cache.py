"""Where prepared data is kept, and how processes share it."""

import contextlib
import os
import pathlib
import sys
from collections.abc import Iterator

from lmjax.locking import acquire


def cache_directory(cache_dir: str) -> pathlib.Path:
    """The config's directory, else $LMJAX_CACHE, else ~/.cache/lmjax."""
    chosen = cache_dir or os.environ.get("LMJAX_CACHE") or "~/.cache/lmjax"
    return pathlib.Path(chosen).expanduser()


@contextlib.contextmanager
def alone(path: pathlib.Path) -> Iterator[None]:
    """Holds a lock beside `path`: of several processes one makes it, the others then find it.

    The lock of a killed process is free. Where the file system knows no locks, work may be
    done twice; whoever writes must therefore still move whole results into place.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("a") as file:
        if not acquire(file, wait=False):
            print(f"waiting for another process to prepare {path}", file=sys.stderr, flush=True)
            acquire(file, wait=True)
        yield
