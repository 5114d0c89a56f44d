"""Settings of the host process."""

import ctypes
import sys


def tune_host_memory() -> bool:
    """Keeps freed memory in the process. Call it before JAX creates its first array.

    XLA's CPU backend allocates scratch memory in every step. By default, glibc maps and unmaps such
    large blocks, and zeroing their pages takes 20% to 50% of the time of a step. This function
    makes glibc serve all blocks from one heap that never shrinks, which costs address space and
    keeps peak memory allocated until the process ends. It has no effect without glibc on Linux.

    Returns:
      Whether glibc accepted the settings.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):  # musl ignores mallopt
        return False
    settings = (
        (-4, 0),  # M_MMAP_MAX: no separate mappings for large blocks
        (-1, -1),  # M_TRIM_THRESHOLD: the heap never shrinks
        (-2, 256 << 20),  # M_TOP_PAD: it grows by 256 MiB at a time
        (-8, 1),  # M_ARENA_MAX: one heap for all threads
    )
    return all([libc.mallopt(name, value) == 1 for name, value in settings])
