"""What a device will hold at the height of a step, reckoned before anything is compiled."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lmjax.errors import ConfigError
from lmjax.nn.partition import ROWS, SEQUENCE
from lmjax.nn.trunk import TransformerConfig
from lmjax.objectives.base import Objective
from lmjax.training.devices import memory_of
from lmjax.training.program import Program
from lmjax.training.sharding import bytes_per_device, in_words
from lmjax.training.step import corrupt_batch


@dataclasses.dataclass(frozen=True)
class Footprint:
    """Bytes on one device.

    Attributes:
      state: parameters, moments, moving average, memory of earlier text.
      gradients: of the parameters; twice, where they are added up over micro-batches.
      activations: what the forward pass of a micro-batch keeps for the backward pass, and the
        gradient of the largest of it. What `tensor` splits counts whole.
    """

    state: int
    gradients: int
    activations: int

    @property
    def total(self) -> int:
        return self.state + self.gradients + self.activations

    def __str__(self) -> str:
        return (
            f"{in_words(self.total)} a device: state {in_words(self.state)}, gradients"
            f" {in_words(self.gradients)}, activations {in_words(self.activations)}"
        )


def check_fits(size: int, devices: Sequence[jax.Device], where: str) -> None:
    """Refuses what the devices cannot hold, before anything is traced or allocated.

    Args:
      size: bytes, over all devices.
      where: what asks for them, for the message.

    Raises:
      ConfigError: the devices have less memory.
    """
    limit = memory_of(devices)
    if limit is not None and size > limit:
        raise ConfigError(
            f"{where}: needs at least {in_words(size)}, and the memory of {len(devices)} x"
            f" {devices[0].device_kind} is {in_words(limit)}; make the model smaller, or split it"
            " over more devices"
        )


def check_model_fits(model: Any, mesh: jax.sharding.Mesh, rows: int = 0) -> None:
    """Refuses to train a model whose parameters and gradients the devices of a mesh cannot hold.

    Counts kernels and tables alone, by the numbers of the config: a model that is far too large
    takes hours to trace.

    Args:
      model: of a family's config.
      rows: of a batch, each of which has a memory of earlier text (XLNet).

    Raises:
      ConfigError: as `check_fits`.
    """
    trunk = getattr(model, "trunk", None)
    if not isinstance(trunk, TransformerConfig):
        return
    features = getattr(model, "embedding_size", 0) or trunk.hidden_size
    tables = getattr(model, "vocab_size", 0) + getattr(model, "max_length", 0)
    numbers = trunk.kernel_size + tables * features
    memory = rows * getattr(model, "memory_length", 0) * trunk.layers * trunk.hidden_size
    check_fits(4 * (2 * numbers + memory), list(mesh.devices.flat), "config.model")


def predict(objective: Objective, program: Program, accumulation: int) -> Footprint:
    """Traces the loss and adds up what its backward pass needs; to be called under the mesh.

    What a chunk of queries, or a block that is computed again, holds for itself is not counted,
    and the compiler may compute more of it again: `docs/scale.md` holds predictions against
    compiled programs.
    """
    mesh = program.mesh
    rows = program.batch["tokens"].shape[0] // accumulation

    def kept(params: Any, batch: Any, mems: Any) -> list[jax.Array]:
        corrupted, seeds = corrupt_batch(objective, jax.random.key(0), batch)

        def loss(params: Any) -> jax.Array:
            scored = objective.loss(params, corrupted, mems, seeds)
            return jnp.stack([total for total, _ in scored.terms.values()]).sum()

        needed = {id(x): x for x in jax.tree.leaves(jax.vjp(loss, params)[1])}
        for x in jax.tree.leaves((params, mems)):  # part of the state
            needed.pop(id(x), None)
        return list(needed.values())

    batch = {
        name: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype)
        for name, x in program.batch.items()
    }
    mems = jax.eval_shape(lambda: objective.init_mems(rows))
    found = jax.eval_shape(kept, program.state.params, batch, mems)
    sizes = [x.size * x.dtype.itemsize for x in found]
    parts = mesh.shape[ROWS[0]] * mesh.shape[ROWS[1]] * mesh.shape[SEQUENCE]
    gradients = bytes_per_device(program.state.params, mesh)
    return Footprint(
        state=bytes_per_device(program.state, mesh),
        gradients=gradients * (2 if accumulation > 1 else 1),
        activations=(sum(sizes) + max(sizes, default=0)) // parts,
    )
