"""The axes of the device mesh and the sharding constraints of the network.

One table holds the sharding of parameters (`lmjax.training.sharding`), and the compiler derives
most of the rest. Only the length needs explicit care: it is split over `sequence`, and attention
combines positions across devices.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

DATA, FSDP, SEQUENCE, TENSOR = AXES = ("data", "fsdp", "sequence", "tensor")
ROWS = (DATA, FSDP)  # the axes over which the rows of a batch are split


def sequence_parts() -> int:
    """Number of parts into which the current mesh splits the length; 1 without a mesh."""
    return jax.sharding.get_abstract_mesh().shape.get(SEQUENCE, 1)


def platform() -> str:
    """'cpu', 'gpu' or 'tpu': of the current mesh, whose devices may be abstract, or the default."""
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    return device.platform if device is not None else jax.default_backend()


def _several_devices() -> bool:
    """Whether the current mesh has lmjax's axes and more than one device."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.size > 1 and SEQUENCE in mesh.shape


def split_activations(x: jax.Array) -> jax.Array:
    """Constrains x [batch, length, ...]: rows over `data` and `fsdp`, positions over `sequence`.

    Without the constraint, the compiler may split the features of an activation like those of the
    kernel that produced it, and then gather the whole activation.
    """
    return _constrained(x, SEQUENCE)


def split_rows(tree: Any) -> Any:
    """Constrains arrays [batch, ...] to be split over rows only."""
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
    """Gathers a table [rows, features] along `fsdp` for use, since `fsdp` also splits its rows."""
    parts = jax.sharding.get_abstract_mesh().shape
    if parts.get(FSDP, 1) == 1:
        return table
    rows = TENSOR if table.shape[0] % parts[TENSOR] == 0 else None
    return jax.lax.with_sharding_constraint(table, PartitionSpec(rows, None))


def over_queries(f: Callable[..., jax.Array], queries: Any, keys: Any, shared: Any) -> jax.Array:
    """Runs attention with a part of the queries and all keys and values on each device.

    Keys and values are gathered over `sequence`; their gradients are summed and scattered back
    (the "all-gather" context parallelism of Llama 3, Dubey et al. 2024 §3.3.2).

    Args:
      f: called as f(first, queries, keys, shared) -> [batch, queries, ...], where `queries` start
        at position `first` and `keys` holds all keys.
      queries, keys: pytrees of arrays [batch, length, ...] whose lengths split evenly.
      shared: pytree of arrays that are replicated over `sequence`.

    Returns:
      [batch, queries, ...].
    """
    parts = sequence_parts()
    if parts == 1:
        return f(0, queries, keys, shared)

    def part(queries: Any, keys: Any, shared: Any) -> jax.Array:
        def whole(x: jax.Array) -> jax.Array:
            return jax.lax.all_gather(x, SEQUENCE, axis=1, tiled=True)

        # Gradients are then summed over devices for `shared`, not for values derived from it.
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
    """Pads x [batch, shorter, ...] with zeros to `length`."""
    if x.shape[1] == length:
        return x
    return jnp.pad(x, [(0, 0), (0, length - x.shape[1])] + [(0, 0)] * (x.ndim - 2))
