"""The axes of the device mesh, and what the network itself must know of them.

Where parameters lie is written in one table (`lmjax.training.sharding`), and the compiler
finds the rest. Only the length of a text needs a hand: it is split over `sequence`, and
attention is the one place where positions meet.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

DATA, FSDP, SEQUENCE, TENSOR = AXES = ("data", "fsdp", "sequence", "tensor")
ROWS = (DATA, FSDP)  # what the rows of a batch are split over


def sequence_parts() -> int:
    """Into how many parts the present mesh splits the length; 1 without a mesh."""
    return jax.sharding.get_abstract_mesh().shape.get(SEQUENCE, 1)


def platform() -> str:
    """'cpu', 'gpu' or 'tpu': of the present mesh's devices, which need not be here, or of here."""
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    return device.platform if device is not None else jax.default_backend()


def _several_devices() -> bool:
    """Whether the present mesh is one of ours, with more than one device."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.size > 1 and SEQUENCE in mesh.shape


def split_activations(x: jax.Array) -> jax.Array:
    """Keeps x [batch, length, ...] split: rows over `data` and `fsdp`, positions over `sequence`.

    Left alone, the compiler may split the features of an activation as those of the kernel
    that made it lie, and then gather it whole.
    """
    return _constrained(x, SEQUENCE)


def split_rows(tree: Any) -> Any:
    """Keeps arrays [batch, ...] split by rows alone."""
    if not _several_devices():
        return tree
    rows = PartitionSpec(ROWS)
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, rows), tree)


def whole_length(x: jax.Array) -> jax.Array:
    """Gathers the positions of x [batch, length, ...]."""
    return _constrained(x, None)


def _constrained(x: jax.Array, axis: str | None) -> jax.Array:
    if not _several_devices():
        return x
    rest = [None] * (x.ndim - 2)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(ROWS, axis, *rest))


def gathered(table: jax.Array) -> jax.Array:
    """A table [rows, features] about to be used: whole along `fsdp`, which splits rows too."""
    parts = jax.sharding.get_abstract_mesh().shape
    if parts.get(FSDP, 1) == 1:
        return table
    rows = TENSOR if table.shape[0] % parts[TENSOR] == 0 else None
    return jax.lax.with_sharding_constraint(table, PartitionSpec(rows, None))


def over_queries(f: Callable[..., jax.Array], queries: Any, keys: Any, shared: Any) -> jax.Array:
    """Attention in which each device has some of the queries and all keys and values.

    Keys and values are gathered over `sequence`, their gradients summed and scattered back
    (the "all-gather" context parallelism of Llama 3, Dubey et al. 2024 §3.3.2).

    Args:
      f: called as f(first, queries, keys, shared), where `queries` are those from position
        `first` on and `keys` all of them -> [batch, queries, ...].
      queries, keys: pytrees of arrays [batch, length, ...], lengths that split evenly.
      shared: pytree of what every device has whole.

    Returns:
      [batch, queries, ...].
    """
    parts = sequence_parts()
    if parts == 1:
        return f(0, queries, keys, shared)

    def part(queries: Any, keys: Any, shared: Any) -> jax.Array:
        def whole(x: jax.Array) -> jax.Array:
            return jax.lax.all_gather(x, SEQUENCE, axis=1, tiled=True)

        # Sums of gradients over devices are then of `shared` itself, not of what is made of it.
        shared = jax.tree.map(lambda x: jax.lax.pcast(x, SEQUENCE, to="varying"), shared)
        count = jax.tree.leaves(queries)[0].shape[1]
        first = jax.lax.axis_index(SEQUENCE) * count
        return f(first, queries, jax.tree.map(whole, keys), shared)

    along = PartitionSpec(None, SEQUENCE)
    run = jax.shard_map(
        part,
        in_specs=(along, along, PartitionSpec()),
        out_specs=along,
        axis_names={SEQUENCE},
    )
    return run(queries, keys, shared)


def pad_length(x: jax.Array, length: int) -> jax.Array:
    """x [batch, shorter, ...] with zeros up to `length`."""
    if x.shape[1] == length:
        return x
    return jnp.pad(x, [(0, 0), (0, length - x.shape[1])] + [(0, 0)] * (x.ndim - 2))
