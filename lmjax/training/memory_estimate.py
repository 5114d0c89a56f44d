"""Peak memory of a step: estimated before compilation, or compiled for absent devices."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import rich.console

from lmjax.data.examples.stand_in import stand_in_row
from lmjax.errors import ConfigError
from lmjax.nn.partition import ROWS, SEQUENCE
from lmjax.nn.trunk import TransformerConfig
from lmjax.training.monitor import wide_console
from lmjax.training.plan import Phase, make_plan
from lmjax.training.sharding import bytes_per_device, format_bytes, layout
from lmjax.training.step import Program, corrupt_batch


@dataclasses.dataclass(frozen=True)
class Footprint:
    """Peak memory of a step on one device, in bytes.

    Attributes:
      state: parameters, moments, moving average, memory of earlier text.
      gradients: of the parameters; counted twice if they are accumulated over micro-batches.
      activations: what the forward pass of a micro-batch stores for the backward pass, plus the
        gradient of the largest array of it. Arrays split over `tensor` are counted whole.
    """

    state: int
    gradients: int
    activations: int

    @property
    def total(self) -> int:
        return self.state + self.gradients + self.activations

    def __str__(self) -> str:
        return (
            f"{format_bytes(self.total)} a device: state {format_bytes(self.state)}, gradients"
            f" {format_bytes(self.gradients)}, activations {format_bytes(self.activations)}"
        )


def check_fits(size: int, devices: Sequence[jax.Device], where: str) -> None:
    """Checks that the devices can hold `size` bytes, before anything is traced or allocated.

    Args:
      size: bytes, over all devices.
      devices: that share them.
      where: the field or file that needs them, for the message.

    Raises:
      ConfigError: the devices have less memory.
    """
    limit = memory_of(devices)
    if limit is not None and size > limit:
        raise ConfigError(
            f"{where}: needs at least {format_bytes(size)}, and the memory of {len(devices)} x"
            f" {devices[0].device_kind} is {format_bytes(limit)}; make the model smaller, or split"
            " it over more devices"
        )


def check_model_fits(model: Any, mesh: jax.sharding.Mesh, rows: int = 0) -> None:
    """Checks that the devices of a mesh can hold the parameters and gradients of a model.

    Counts only kernels and tables, from the numbers of the config, because tracing a model that
    is far too large takes hours.

    Args:
      model: the config of a model.
      mesh: the devices.
      rows: of a batch; each has a memory of earlier text (XLNet).

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


def estimate_memory(program: Program) -> Footprint:
    """Estimates the peak memory of a step from a trace of its loss. Call it under the mesh.

    It does not count what a chunk of queries, or a rematerialized block, holds while it is
    computed; the compiler may rematerialize more. `docs/scale.md` compares estimates with compiled
    programs.
    """
    objective, mesh = program.objective, program.mesh
    accumulation = program.training.accumulation
    rows = program.abstract_batch["tokens"].shape[0] // accumulation

    def kept(params: Any, batch: Any, mems: Any) -> list[jax.Array]:
        corrupted, seeds = corrupt_batch(objective, jax.random.key(0), batch)

        def loss(params: Any) -> jax.Array:
            scored = objective.loss(params, corrupted, mems, seeds)
            return jnp.stack([total for total, _ in scored.terms.values()]).sum()

        needed = {id(x): x for x in jax.tree.leaves(jax.vjp(loss, params)[1])}
        for x in jax.tree.leaves((params, mems)):  # counted as state
            needed.pop(id(x), None)
        return list(needed.values())

    batch = {
        name: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype)
        for name, x in program.abstract_batch.items()
    }
    mems = jax.eval_shape(lambda: objective.init_mems(rows))
    found = jax.eval_shape(kept, program.abstract_state.params, batch, mems)
    sizes = [x.size * x.dtype.itemsize for x in found]
    parts = mesh.shape[ROWS[0]] * mesh.shape[ROWS[1]] * mesh.shape[SEQUENCE]
    gradients = bytes_per_device(program.abstract_state.params, mesh)
    return Footprint(
        state=bytes_per_device(program.abstract_state, mesh),
        gradients=gradients * (2 if accumulation > 1 else 1),
        activations=(sum(sizes) + max(sizes, default=0)) // parts,
    )


def memory_of(devices: Sequence[Any]) -> int | None:
    """The total memory of devices of one kind in bytes; None if unknown.

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


def dry_run(config: ml_collections.ConfigDict, topology: str) -> None:
    """Compiles a step of `config` for `topology` and prints its memory and FLOPs.

    Reads no data and trains nothing; the vocabulary has the size that the config asks for.

    Args:
      config: of a pretraining run.
      topology: `here` for `jax.devices()`, `cpu:N` for N devices of the host, or TPUs by
        generation and shape, such as `v5e:4x4` (needs libtpu, but no TPU).

    Raises:
      ConfigError: the config cannot work, the topology is unknown, or the step does not fit on
        its devices.
    """
    devices = parse_topology(topology)
    plan = make_plan(config, devices)
    console = wide_console()
    for phase in plan.phases:
        if phase.name:
            _print(console, f"phase '{phase.name}', from step {phase.start + 1}:")
        _dry_run(phase, plan.mesh, devices, console)


def _dry_run(
    phase: Phase,
    mesh: jax.sharding.Mesh,
    devices: Sequence[jax.Device],
    console: rich.console.Console,
) -> None:
    row = stand_in_row(phase.examples, phase.objective.vocabulary)
    with jax.set_mesh(mesh):
        program = Program(phase.objective, row, phase.training, phase.optimizer, mesh)
        console.print(layout(program.abstract_state, mesh))
        kind = f"{mesh.devices.size} x {devices[0].device_kind}"
        expected = estimate_memory(program)
        _print(console, f"{kind}: expected, about {expected}")
        began = time.perf_counter()
        try:
            compiled = program.step.lower(program.abstract_state, program.abstract_batch).compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise ConfigError(
                f"--dry_run: a step does not fit on {devices[0].device_kind}:"
                f" {str(error).splitlines()[0].removeprefix('RESOURCE_EXHAUSTED: ')} Split it"
                " (config.mesh, config.training.accumulation) or keep less of it"
                " (config.model.trunk.remat, config.model.trunk.query_chunk)"
            ) from error
    seconds = time.perf_counter() - began
    memory = compiled.memory_analysis()
    if memory is not None:
        # The new state reuses the memory of the old one.
        arguments, scratch = memory.argument_size_in_bytes, memory.temp_size_in_bytes
        new = memory.output_size_in_bytes - memory.alias_size_in_bytes
        _print(
            console,
            f"{kind}: compiled in {seconds:.0f} s,"
            f" {format_bytes(arguments + scratch + new)} a device: state and batch"
            f" {format_bytes(arguments)}, scratch {format_bytes(scratch)}",
        )
    flops = phase.objective.forward_flops(phase.examples.length)
    if flops is not None:
        step = 3 * flops * phase.training.batch_size
        _print(
            console,
            f"{step:.3g} FLOPs a step by its matrix products,"
            f" {step / mesh.devices.size:.3g} a device",
        )


def parse_topology(topology: str) -> Sequence[jax.Device]:
    """The devices of a topology; see `dry_run` for its syntax."""
    if topology == "here":
        return jax.devices()
    name, _, shape = topology.partition(":")
    if name == "cpu":
        if not shape.isdigit() or int(shape) < 1:
            raise ConfigError(f"--dry_run: '{topology}' is not a number of devices; write cpu:8")
        with contextlib.suppress(RuntimeError):  # the backend is initialized already
            jax.config.update("jax_num_cpu_devices", int(shape))
        devices = jax.devices("cpu")
        if len(devices) < int(shape):
            raise ConfigError(
                f"--dry_run: jax was initialized with {len(devices)} devices of the host before"
                f" {shape} were requested"
            )
        return devices[: int(shape)]
    from jax.experimental import topologies

    # Otherwise libtpu queries the network for the type of this machine.
    for variable, value in (
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("TPU_ACCELERATOR_TYPE", "v5litepod-1"),
    ):
        os.environ.setdefault(variable, value)
    try:
        return topologies.get_topology_desc(topology_name=topology, platform="tpu").devices
    except Exception as error:  # each backend raises its own type
        raise ConfigError(
            f"--dry_run: no topology '{topology}' here ({str(error).splitlines()[0]}); 'here',"
            " 'cpu:8', or TPUs such as 'v5e:4x4' with the extra installed:"
            " pip install -e '.[tpu]'"
        ) from error


def _print(console: rich.console.Console, line: str) -> None:
    console.print(line, highlight=False, soft_wrap=True)
