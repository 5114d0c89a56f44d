"""The device mesh, and how batches and parameters are sharded over it.

Data parallelism replicates parameters and splits rows over the axes `data` and `fsdp`. FSDP
(Rajbhandari et al. 2020, ZeRO stage 3) splits every matrix and its moments over `fsdp`; the
compiler gathers a layer where it is used. Tensor parallelism (Shoeybi et al. 2019 §3) splits
heads and feed-forward neurons over `tensor`: the first product of a sublayer by its columns, the
second by its rows, with one sum over devices at its end. Parameters are not split along
`sequence`, which splits the length of a text (`lmjax.nn.partition`).
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import jax
import numpy as np
import rich.table
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lmjax.configuration import Interval, PositiveInt, check_ranges
from lmjax.errors import ConfigError
from lmjax.nn.partition import AXES, DATA, FSDP, ROWS, SEQUENCE, TENSOR

# Parameter sharding rules: a pattern of the parameter's path, and the mesh axis of each of its
# dimensions, aligned with the last ones (a scanned stack of layers has an axis in front). The
# first rule that matches applies; parameters that match none are replicated.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"(query|key|value|relative|inner|gate)/kernel$", (FSDP, TENSOR)),
    (r"(query|key|value|inner|gate)/bias$", (TENSOR,)),
    (r"(attention/output|outer)/kernel$", (TENSOR, FSDP)),
    (r"(content|position|segment)_bias$", (TENSOR, None)),
    (r"segment_embedding$", (TENSOR, None)),
    (r"token/embedding$", (TENSOR, FSDP)),
    (r"output_bias$", (TENSOR,)),
    (r"(embedding|kernel)$", (FSDP, None)),
)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The number of devices along each mesh axis; their product is the number of devices.

    Attributes:
      data: replicas of the model, each with its own rows; -1 uses all devices that the other
        axes leave, a smaller number uses the first devices.
      fsdp: devices that split parameters and moments between them, each with its own rows.
      sequence: devices that split the length of the same rows (context parallelism).
      tensor: devices that split heads and feed-forward neurons of the same rows.
    """

    data: Annotated[int, Interval("[-1, inf)")] = -1
    fsdp: PositiveInt = 1
    sequence: PositiveInt = 1
    tensor: PositiveInt = 1

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.data:
            raise ConfigError("data: must be at least 1, or -1 for all remaining devices; got 0")


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes the mesh (data, fsdp, sequence, tensor) over the first devices, with Auto axes.

    Devices that split one replica of the model are adjacent.

    Args:
      devices: the available devices; None uses `jax.devices()`.

    Raises:
      ConfigError: the mesh needs more devices than there are; or, with several processes, it
        leaves out some devices (a process without devices cannot take part) or makes two
        processes share rows.
    """
    devices = jax.devices() if devices is None else devices
    one_copy = config.fsdp * config.sequence * config.tensor
    data = len(devices) // one_copy if config.data == -1 else config.data
    count = data * one_copy
    sizes = (data, config.fsdp, config.sequence, config.tensor)
    shape = f"{' x '.join(AXES)} = {' x '.join(map(str, sizes))}"
    if not 0 < count <= len(devices):
        too_many = DATA if one_copy <= len(devices) else max(AXES[1:], key=config.__getattribute__)
        raise ConfigError(
            f"config.mesh.{too_many}: {shape} devices requested, {len(devices)} available "
            f"({devices[0].device_kind}); data = -1 uses what the other axes leave"
        )
    if jax.process_count() > 1:
        if count != len(devices):
            raise ConfigError(
                f"config.mesh: {shape} of {len(devices)} devices, but {jax.process_count()} "
                "processes must use all of theirs; use data = -1"
            )
        if jax.local_device_count() % (config.sequence * config.tensor):
            raise ConfigError(
                f"config.mesh: {shape}: sequence x tensor devices share their rows and must"
                f" belong to one process, which has {jax.local_device_count()}; lower them"
            )
    # The name of the first keyword differs between versions of jax: pass it by position.
    return jax.make_mesh(
        sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices[:count]
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: rows, the leading axis, are split over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch(batch_size: int, length: int, accumulation: int, mesh: Mesh) -> None:
    """Raises ConfigError unless each micro-batch splits evenly over the devices."""
    if length % mesh.shape[SEQUENCE]:
        raise ConfigError(
            f"config.mesh.sequence: {mesh.shape[SEQUENCE]} devices do not split"
            f" config.data.examples.length={length} evenly"
        )
    if accumulation < 1:
        raise ConfigError(f"config.training.accumulation: {accumulation} is not positive")
    devices = mesh.shape[DATA] * mesh.shape[FSDP]
    parts = accumulation * devices
    if batch_size < 1 or batch_size % parts:
        below, above = batch_size // parts * parts, (batch_size // parts + 1) * parts
        near = f"{below} or {above}" if below > 0 else f"{above}"
        raise ConfigError(
            f"config.training.batch_size: {batch_size} is not divisible by {parts} "
            f"(accumulation {accumulation} x {devices} devices along data and fsdp); use {near}"
        )


def global_batch(
    local: Mapping[str, np.ndarray], mesh: Mesh, batch_size: int
) -> dict[str, jax.Array]:
    """Assembles the global batch from the rows of each process.

    Args:
      local: name -> [batch_size / processes, ...], the rows of this process.
      mesh: the mesh to shard over.
      batch_size: the number of rows of all processes.

    Returns:
      name -> [batch_size, ...], sharded by rows.
    """
    rows = batch_size // jax.process_count()
    for name, array in local.items():
        if len(array) != rows:
            raise ValueError(f"batch['{name}']: {len(array)} rows, expected {rows} per process")
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(
            sharding, np.asarray(array), (batch_size, *array.shape[1:])
        )
        for name, array in local.items()
    }


def spec_of(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """The PartitionSpec of a parameter, or of one of its moments.

    A dimension that its axis does not divide is replicated.

    Args:
      path: names joined by '/'; the path of a moment ends in the path of its parameter.
      shape: of the array.
      mesh: the mesh to shard over.
    """
    axes = next((axes for rule, axes in RULES if re.search(rule, path)), ())
    if len(axes) > len(shape):
        return PartitionSpec()
    padded = (*[None] * (len(shape) - len(axes)), *axes)
    return PartitionSpec(
        *(
            axis if axis is not None and size % mesh.shape[axis] == 0 else None
            for axis, size in zip(padded, shape, strict=True)
        )
    )


def shardings(tree: Any, mesh: Mesh) -> Any:
    """The NamedSharding of each leaf of a tree of parameters, or of a TrainState.

    Memories, [layers, batch, ...] under the name `mems`, are split as batches are.

    Args:
      tree: of arrays or ShapeDtypeStructs.
      mesh: the mesh to shard over.

    Returns:
      A tree of NamedShardings with the structure of `tree`.
    """

    def place(path: Any, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if re.match(r"mems(/|$)", name):
            return NamedSharding(mesh, PartitionSpec(None, ROWS))
        return NamedSharding(mesh, spec_of(name, tuple(leaf.shape), mesh))

    return jax.tree_util.tree_map_with_path(place, tree)


def bytes_per_device(tree: Any, mesh: Mesh) -> int:
    """The bytes that one device holds of a tree of arrays or ShapeDtypeStructs."""
    leaves, places = jax.tree.leaves(tree), jax.tree.leaves(shardings(tree, mesh))
    return sum(_held(leaf, place) for leaf, place in zip(leaves, places, strict=True))


def layout(state: Any, mesh: Mesh) -> rich.table.Table:
    """A table of how parameters are sharded; parameters that repeat in all layers are one row.

    Args:
      state: a TrainState of arrays or ShapeDtypeStructs. The rows are its parameters; the
        caption counts all of it.
      mesh: the mesh to shard over.
    """
    rows: dict[tuple[str, tuple[int, ...], str], list[int]] = {}
    leaves = jax.tree_util.tree_leaves_with_path(state.params)
    places = jax.tree.leaves(shardings(state.params, mesh))
    for (path, leaf), place in zip(leaves, places, strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        spec = ", ".join("-" if axis is None else str(axis) for axis in place.spec)
        alike = re.sub(r"layer_\d+", "layer_*", name), tuple(leaf.shape), spec
        rows.setdefault(alike, []).append(_held(leaf, place))
    shape = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    whole = sum(leaf.size * leaf.dtype.itemsize for _, leaf in leaves)
    table = rich.table.Table(
        title=f"{mesh.devices.size} devices: {shape}",
        caption=f"a device holds {format_bytes(bytes_per_device(state.params, mesh))} of"
        f" {format_bytes(whole)} of parameters,"
        f" {format_bytes(bytes_per_device(state, mesh))} with moments",
    )
    table.add_column("parameter", overflow="fold")
    for column in ("count", "shape", "split over", "bytes a device"):
        table.add_column(column, justify="right")
    for (name, dimensions, spec), held in rows.items():
        table.add_row(
            name, str(len(held)), str(list(dimensions)), spec or "-", format_bytes(sum(held))
        )
    return table


def _held(leaf: Any, place: NamedSharding) -> int:
    key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return math.prod(place.shard_shape(tuple(leaf.shape))) * (8 if key else leaf.dtype.itemsize)


def format_bytes(count: float) -> str:
    """A number of bytes in a readable unit, such as '1.5 GiB'."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} TiB"
