"""Locks between processes: a directory or a piece of work belongs to one of them at a time.

A lock is flock's on a file that its holder keeps open, so that the kernel frees it when the
holder ends, by kill -9 too. On NFS the server holds it, for the processes of all machines.
"""

import contextlib
import errno
import fcntl
import os
import pathlib
import socket
import sys
from collections.abc import Iterator
from typing import IO, Any

_HELD: set[str] = set()  # the lock files that this process holds


@contextlib.contextmanager
def held(path: pathlib.Path, wait: bool = False) -> Iterator[str | None]:
    """Holds the lock file `path`, made if missing, unless another process holds it.

    What this process holds already, it may hold again.

    Args:
      wait: until the other process frees it.

    Yields:
      None where this process holds the lock, else who does, such as 'process 123 on host'.
    """
    name = str(path.resolve())
    if name in _HELD:
        yield None
        return
    with contextlib.ExitStack() as stack:
        while True:
            file = stack.enter_context(path.open("a+"))
            ours = acquire(file, wait)
            if not ours or _is_at(file, path):
                break  # else its last holder has removed it meanwhile
        file.seek(0)
        if not ours:
            yield file.read().strip() or "another process"
            return
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        _HELD.add(name)
        try:
            yield None
        finally:
            _HELD.discard(name)


def acquire(file: IO[Any], wait: bool) -> bool:
    """Locks an open file until it is closed; whether it could.

    Where the file system has no locks, says so and goes on as if it could.

    Args:
      wait: until another process frees the lock.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
            raise
        print(
            f"{file.name}: no locks on this file system ({error.strerror}); make sure that no"
            " other process works there",
            file=sys.stderr,
            flush=True,
        )
    return True


def _is_at(file: IO[Any], path: pathlib.Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
