"""Selects the attention kernel from the device, dtype and mask.

Besides plain matrix products (`lmjax.nn.attention`, all at once or in chunks of queries), two
flash attention kernels are supported: cuDNN on NVIDIA GPUs and splash attention on TPUs. Both
need 16-bit operands, whole sequences on each device and no dropout of the attention weights.
XLNet uses neither: its scores depend on relative distances, which a kernel would need as a
materialized bias.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lmjax.errors import ConfigError
from lmjax.nn.masks import Mask, named_parts
from lmjax.nn.partition import ROWS, SEQUENCE, TENSOR, platform, sequence_parts
from lmjax.nn.trunk import Kernel

_OF_PLATFORM: dict[str, Kernel] = {"gpu": "cudnn", "tpu": "splash"}
_SPLASH_BLOCK = 128  # block size of queries and keys: the lanes of one register


def choose(
    wanted: Kernel, query: jax.Array, key: jax.Array, mask: Mask, dtype: Any, drops: bool
) -> Kernel:
    """Selects the kernel for these operands on the current mesh: plain, cudnn or splash.

    Args:
      wanted: the requested kernel. `auto` falls back to plain, with one line on stderr if the
        device has a kernel that cannot be used.
      query, key: [batch, length, heads, head_dim].
      dtype: dtype of the matrix product operands.
      drops: whether dropout is applied to the attention weights.

    Raises:
      ConfigError: the kernel requested by name does not support the operands.
    """
    if wanted == "plain":
        return "plain"
    here = platform()
    kernel = _OF_PLATFORM.get(here, "plain") if wanted == "auto" else wanted
    if kernel == "plain":
        return "plain"
    why = _why_not(kernel, here, query, key, mask, dtype, drops)
    if not why:
        return kernel
    if wanted != "auto":
        raise ConfigError(
            f"config.model.trunk.attention: '{kernel}' {why}; 'auto' uses it where possible"
        )
    _report(f"attention: using plain products, since {kernel} {why}")
    return "plain"


def cudnn(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Mask,
    dtype: Any,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> jax.Array:
    """cuDNN flash attention. Shapes as in `attention`.

    Every mask except a purely causal one is materialized: [batch, 1, queries, keys] of 16 bits.
    Scores are never stored. Fully masked queries return zeros and have zero gradients.
    """
    parts = named_parts(mask)
    causal = parts is not None and "causal" in parts
    visible = None
    if parts is None:
        written = mask.dense()
        seeing = written.any(-1)
    elif "documents" in parts:
        written, seeing = parts["documents"].dense(), _sees_itself(parts)
    else:
        written, seeing = None, None
    if written is not None:
        shape = (written.shape[0], query.shape[1], key.shape[1])
        visible = jnp.broadcast_to(written, shape)[:, None]
    query, key, value = (x.astype(dtype) for x in (query, key, value))
    y = jax.nn.dot_product_attention(
        query, key, value, mask=visible, is_causal=causal, implementation=implementation
    ).astype(jnp.float32)
    return y if seeing is None else jnp.where(seeing[..., None, None], y, 0.0)


def splash(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Mask,
    dtype: Any,
    interpret: bool = False,
) -> jax.Array:
    """TPU splash attention; skips blocks of keys that a causal mask hides.

    Shapes as in `attention`. Memory is linear in the length; documents are passed as segment ids.

    Args:
      interpret: run the kernel in interpret mode, slowly, without a TPU.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as kernels,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as shapes

    parts = named_parts(mask)
    assert parts is not None
    length, head_dim = query.shape[1], query.shape[-1]
    block = next(size for size in (512, 256, 128) if length % size == 0)
    blocks: dict[str, Any] = dict.fromkeys(
        (
            "block_q",
            "block_kv",
            "block_kv_compute",
            "block_q_dkv",
            "block_kv_dkv",
            "block_kv_dkv_compute",
            "block_q_dq",
            "block_kv_dq",
        ),
        block,
    )
    shape = (length, length)
    form = shapes.CausalMask(shape) if "causal" in parts else shapes.FullMask(shape)

    def on_one_device(
        query: jax.Array, key: jax.Array, value: jax.Array, ids: jax.Array
    ) -> jax.Array:
        kernel = kernels.make_splash_mha(
            shapes.MultiHeadMask([form] * query.shape[2]),
            block_sizes=kernels.BlockSizes(**blocks),
            head_shards=1,
            q_seq_shards=1,
            interpret=interpret,
        )

        def row(query: jax.Array, key: jax.Array, value: jax.Array, ids: jax.Array) -> jax.Array:
            by_head = (x.swapaxes(0, 1) for x in (query, key, value))
            return kernel(*by_head, kernels.SegmentIds(q=ids, kv=ids)).swapaxes(0, 1)

        return jax.vmap(row)(query, key, value, ids)

    ids = jnp.zeros((1, length), jnp.int32)
    if "documents" in parts:
        ids = parts["documents"].query.astype(jnp.int32)
    ids = jnp.broadcast_to(ids, query.shape[:2])
    operands = [x.astype(dtype) for x in (query * head_dim**-0.5, key, value)]
    run: Callable[..., jax.Array] = on_one_device
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size > 1 and SEQUENCE in mesh.shape:
        # The compiler cannot partition a kernel: shard_map runs it on each device's rows and heads.
        heads = PartitionSpec(ROWS, None, TENSOR)
        run = jax.shard_map(
            on_one_device,
            in_specs=(heads, heads, heads, PartitionSpec(ROWS)),
            out_specs=heads,
            check_vma=False,
        )
    y = run(*operands, ids).astype(jnp.float32)
    # Padding has attended to padding.
    return jnp.where(_sees_itself(parts)[..., None, None], y, 0.0) if "documents" in parts else y


KERNELS: dict[str, Callable[..., jax.Array]] = {"cudnn": cudnn, "splash": splash}


def _why_not(
    kernel: Kernel,
    here: str,
    query: jax.Array,
    key: jax.Array,
    mask: Mask,
    dtype: Any,
    drops: bool,
) -> str:
    """Returns why a kernel cannot be used, as a phrase that follows its name; '' if it can."""
    (_, length, heads, head_dim), keys = query.shape, key.shape[1]
    if _OF_PLATFORM.get(here) != kernel:
        return f"does not run on this device ({here})"
    if jnp.dtype(dtype) != jnp.bfloat16:
        return f"needs config.model.trunk.dtype='bfloat16', not '{jnp.dtype(dtype).name}'"
    if drops:
        return "does not support attention dropout; set config.model.trunk.attention_dropout to 0"
    if sequence_parts() > 1:
        return "needs whole sequences on each device; set config.mesh.sequence to 1"
    if kernel == "cudnn":
        if _compute_capability() < 8.0:
            return "needs an NVIDIA GPU of the Ampere generation or newer"
        if head_dim % 8 or head_dim > 128:
            return f"needs a head size that is a multiple of 8 and at most 128, not {head_dim}"
        if length % 2 or keys % 2:
            return f"needs an even length, not {length}"
        return ""
    if named_parts(mask) is None:
        return "supports only causal and document masks"
    if length % _SPLASH_BLOCK or length != keys:
        return f"needs a length that is a multiple of {_SPLASH_BLOCK}, not {length}"
    if heads % jax.sharding.get_abstract_mesh().shape.get(TENSOR, 1):
        return f"cannot split {heads} heads evenly over config.mesh.tensor"
    return ""


def _sees_itself(parts: dict[str, Any]) -> jax.Array:
    """Returns where tokens are not padding: [batch, length] bool."""
    return parts["documents"].query == parts["documents"].key


def _compute_capability() -> float:
    """Compute capability of the first local GPU; 0 if it is not an NVIDIA GPU."""
    return float(getattr(jax.local_devices()[0], "compute_capability", "0"))


@functools.cache
def _report(line: str) -> None:
    if jax.process_index() == 0:
        print(line, file=sys.stderr, flush=True)
