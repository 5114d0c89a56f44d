"""The device mesh: one axis, `data`; parameters replicated, batches split by rows."""

import dataclasses
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lmjax.errors import ConfigError

DATA_AXIS = "data"


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many devices train.

    Attributes:
      data: devices along the data axis; -1 takes all, a smaller number the first ones.
    """

    data: int = -1

    def __post_init__(self) -> None:
        if self.data != -1 and self.data < 1:
            raise ConfigError(f"data: {self.data} is no number of devices; -1 takes all")


def make_mesh(config: MeshConfig) -> Mesh:
    """The mesh `(data,)` over the first `config.data` devices, with automatic axes.

    Raises:
      ConfigError: more devices asked for than there are, or, with several processes,
        not all of them (a process without devices could not take part).
    """
    devices = jax.devices()
    count = len(devices) if config.data == -1 else config.data
    if count > len(devices):
        raise ConfigError(
            f"config.mesh.data: {count} devices asked for, {len(devices)} available "
            f"({devices[0].device_kind}); -1 takes all"
        )
    if jax.process_count() > 1 and count != len(devices):
        raise ConfigError(
            f"config.mesh.data: {count} of {len(devices)} devices, but {jax.process_count()} "
            "processes must use all of theirs; use -1"
        )
    # The name of the first keyword differs between versions of jax: pass it by position.
    return jax.make_mesh(
        (count,), (DATA_AXIS,), axis_types=(AxisType.Auto,), devices=devices[:count]
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows, the leading axis, split over the data axis."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch(batch_size: int, accumulation: int, mesh: Mesh) -> None:
    """Raises ConfigError unless each micro-batch splits evenly over the devices."""
    if accumulation < 1:
        raise ConfigError(f"config.training.accumulation: {accumulation} is not positive")
    devices = mesh.devices.size
    parts = accumulation * devices
    if batch_size < 1 or batch_size % parts:
        below, above = batch_size // parts * parts, (batch_size // parts + 1) * parts
        near = f"{below} or {above}" if below > 0 else f"{above}"
        raise ConfigError(
            f"config.training.batch_size: {batch_size} is not divisible by {parts} "
            f"(accumulation {accumulation} x {devices} devices); use {near}"
        )


def global_batch(
    local: Mapping[str, np.ndarray], mesh: Mesh, batch_size: int
) -> dict[str, jax.Array]:
    """Puts this process's rows on its devices as parts of one batch.

    Args:
      local: name -> [batch_size / processes, ...], the rows of this process.
      mesh: where they go; rows split over its data axis.
      batch_size: rows over all processes.

    Returns:
      name -> [batch_size, ...], sharded over the data axis.
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
