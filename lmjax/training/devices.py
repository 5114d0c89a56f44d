"""What the devices can do, and one setting of the host that XLA's CPU backend needs."""

import ctypes
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

# Peak of dense products in FLOP/s of one jax device, by a part of its `device_kind`, the
# first that matches: (16-bit operands, float32 operands at jax's default precision).
# Makers' data sheets, without sparsity. NVIDIA: bfloat16, or float16 before Ampere (bfloat16
# has no tensor cores there); float32 operands run as TF32 since Ampere. TPU: float32
# operands run in one bfloat16 pass; v2 and v3 are two jax devices a chip.
_PEAK_FLOPS: tuple[tuple[str, float, float], ...] = (
    ("TPU v2", 45e12 / 2, 45e12 / 2),
    ("TPU v3", 123e12 / 2, 123e12 / 2),
    ("TPU v4 lite", 137e12, 137e12),
    ("TPU v4", 275e12, 275e12),
    ("TPU v5 lite", 197e12, 197e12),
    ("TPU v5e", 197e12, 197e12),
    ("TPU v5", 459e12, 459e12),
    ("TPU v6", 918e12, 918e12),
    ("B200", 2250e12, 1125e12),
    ("GH200", 989e12, 494.5e12),
    ("H100 PCIe", 756e12, 378e12),
    ("H100 NVL", 835e12, 417.5e12),
    ("H100", 989e12, 494.5e12),
    ("H200", 989e12, 494.5e12),
    ("H800", 989e12, 494.5e12),
    ("A100", 312e12, 156e12),
    ("A800", 312e12, 156e12),
    ("A10G", 70e12, 35e12),
    ("A10", 125e12, 62.5e12),
    ("A30", 165e12, 82e12),
    ("A40", 149.7e12, 74.8e12),
    ("RTX A6000", 154.8e12, 77.4e12),
    ("L40S", 362e12, 183e12),
    ("L40", 181e12, 90.5e12),
    ("L4", 121e12, 60e12),
    ("RTX 4090", 165.2e12, 82.6e12),
    ("RTX 3090", 71e12, 35.6e12),
    ("V100-PCIE", 112e12, 14e12),
    ("V100", 125e12, 15.7e12),
    ("T4", 65e12, 8.1e12),
)


def peak_flops(device: Any, dtype: Any) -> float | None:
    """Peak FLOP/s of dense products on `device`, the 1 of model FLOPs utilisation.

    Args:
      device: a jax.Device.
      dtype: of the operands: bfloat16, float16 or float32.

    Returns:
      None where it is not known: other devices (every CPU) and other dtypes.
    """
    dtype = jnp.dtype(dtype)
    if device.platform == "cpu":
        return None
    for kind, half, single in _PEAK_FLOPS:
        # Whole words: an "RTX A1000" is no A100.
        if re.search(rf"\b{kind}(?![0-9])", device.device_kind, re.IGNORECASE):
            if dtype in (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16)):
                return half
            return single if dtype == jnp.dtype(jnp.float32) else None
    return None


def memory_of(devices: Sequence[Any]) -> int | None:
    """Bytes that devices of one kind hold together; None where it is not known.

    CPU devices of one process share the memory of their host.
    """
    if devices[0].platform == "cpu":
        try:
            host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (AttributeError, OSError, ValueError):
            return None
        return host * len({device.process_index for device in devices})
    here = [device for device in devices if device.process_index == jax.process_index()]
    limit = ((here[0].memory_stats() if here else None) or {}).get("bytes_limit")
    return limit and limit * len(devices)


def tune_host_memory() -> bool:
    """Keeps freed memory in the process. Call it before jax makes its first array.

    XLA's CPU backend allocates its scratch memory anew for every step. By default glibc
    maps such large blocks and unmaps them again, and each step pays for zeroing every
    page: a fifth to a half of the time of a step. Here glibc is told to serve all from one
    heap that never shrinks, which costs address space and the peak of memory use, kept
    until the process ends. Linux with glibc only; elsewhere nothing happens.

    Returns:
      Whether the settings were taken.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):  # musl has no mallopt to speak of
        return False
    settings = (
        (-4, 0),  # M_MMAP_MAX: no block gets a mapping of its own
        (-1, -1),  # M_TRIM_THRESHOLD: the heap never shrinks
        (-2, 256 << 20),  # M_TOP_PAD: and grows by 256 MiB at a time
        (-8, 1),  # M_ARENA_MAX: one heap for all threads
    )
    return all([libc.mallopt(name, value) == 1 for name, value in settings])
