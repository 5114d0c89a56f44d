"""The device mesh, and batches on it: rows over data and fsdp."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lmjax.configuration import Interval, PositiveInt, check_ranges
from lmjax.errors import ConfigError
from lmjax.nn.partition import AXES, DATA, FSDP, ROWS, SEQUENCE


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many devices train, and how they share the work: the product of the four.

    Attributes:
      data: copies of the model, each with its own rows; -1 takes what the others leave of
        all devices, a smaller number the first ones.
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
            raise ConfigError("data: 0 is no number of devices; -1 takes the rest")


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh (data, fsdp, sequence, tensor) over the first devices, with automatic axes.

    Devices that split one copy of the model stand next to each other.

    Args:
      devices: those there are; None = all that jax sees.

    Raises:
      ConfigError: more devices asked for than there are, or, with several processes,
        not all of them (a process without devices could not take part) or rows that two
        processes would share.
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
            f"config.mesh.{too_many}: {shape} devices asked for, {len(devices)} available "
            f"({devices[0].device_kind}); data = -1 takes what the others leave"
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
    """Rows, the leading axis, split over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
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
    """Puts this process's rows on its devices as parts of one batch.

    Args:
      local: name -> [batch_size / processes, ...], the rows of this process.
      mesh: where they go.
      batch_size: rows over all processes.

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
