"""Interprocess locks, which give one process at a time exclusive access to a directory or task.

A lock is an flock on a file that its holder keeps open, so the kernel releases it when the holder
ends, even by kill -9. On NFS, the server manages the lock for processes on all machines.
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
    """Holds the lock file `path`, created if missing, unless another process holds it.

    The lock is reentrant within a process.

    Args:
      wait: whether to wait until another process releases the lock.

    Yields:
      None if this process holds the lock, otherwise the holder, such as 'process 123 on host'.
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
                break  # otherwise the previous holder has removed the file
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
    """Locks an open file until it is closed; returns whether it succeeded.

    If the file system does not support locks, prints a warning and returns True.

    Args:
      wait: whether to wait until another process releases the lock.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
            raise
        print(
            f"{file.name}: this file system does not support locks ({error.strerror}); make sure"
            " that no other process uses this directory",
            file=sys.stderr,
            flush=True,
        )
    return True


def _is_at(file: IO[Any], path: pathlib.Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
