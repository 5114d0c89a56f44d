"""Settings of the host process, and the directory of its cache."""

import ctypes
import os
import pathlib
import sys

from lmjax.errors import ConfigError

CACHE_REMEDY = "set config.data.cache_dir or LMJAX_CACHE to a writable directory with free space"


def cache_directory(cache_dir: str = "") -> pathlib.Path:
    """Returns `cache_dir`, or $LMJAX_CACHE, or ~/.cache/lmjax.

    Raises:
      ConfigError: there is no home directory.
    """
    chosen = cache_dir or os.environ.get("LMJAX_CACHE") or "~/.cache/lmjax"
    try:
        return pathlib.Path(chosen).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"config.data.cache_dir: '{chosen}': {error}; {CACHE_REMEDY}") from error


def tune_host() -> None:
    """Makes the settings of the host process. Call it before JAX creates its first array."""
    tune_host_memory()
    keep_compiled_programs()


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


def keep_compiled_programs() -> None:
    """Keeps compiled programs on disk, so that the second start of a run compiles nothing.

    Enables JAX's persistent compilation cache in the directory `compiled` of the project's cache,
    unless JAX has a directory already (JAX_COMPILATION_CACHE_DIR) or the cache is disabled
    (JAX_ENABLE_COMPILATION_CACHE=false). JAX keys an entry by the program, the compiler's options
    and version, and the device, so a program that is found is the one that would be compiled.
    """
    import jax

    settings = jax.config.values
    if settings["jax_compilation_cache_dir"] or not settings["jax_enable_compilation_cache"]:
        return
    try:
        directory = cache_directory() / "compiled"
        directory.mkdir(parents=True, exist_ok=True)
    except (ConfigError, OSError):
        return  # a read-only home directory: compile every time
    if os.access(directory, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(directory))
        # Also keep small programs: a start compiles dozens of them.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
