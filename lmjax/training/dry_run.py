"""A run compiled for devices that need not be here: what it would hold and compute."""

import contextlib
import os
import time
from collections.abc import Sequence

import jax
import ml_collections
import rich.console

from lmjax.data.examples.stand_in import stand_in_row
from lmjax.errors import ConfigError
from lmjax.training.memory import predict
from lmjax.training.plan import make_plan
from lmjax.training.program import Program
from lmjax.training.reporting import wide_console
from lmjax.training.sharding import in_words, layout


def dry_run(config: ml_collections.ConfigDict, topology: str) -> None:
    """Compiles a step of `config` for `topology` and prints its memory and FLOPs.

    No data is read and nothing is trained: the vocabulary counts as large as the config asks
    for.

    Args:
      topology: `here` for the devices that jax sees, `cpu:N` for N of the host, or TPUs by
        their generation and shape, such as `v5e:4x4` (needs libtpu, but no TPU).

    Raises:
      ConfigError: the config cannot work, the topology is not known here, or the step does not
        fit on its devices.
    """
    devices = devices_of(topology)
    plan = make_plan(config, devices)
    row = stand_in_row(plan.examples, plan.objective.vocabulary)
    console = wide_console()
    with jax.set_mesh(plan.mesh):
        program = Program(plan.objective, row, plan.training, plan.optimizer, plan.mesh)
        console.print(layout(program.state, plan.mesh))
        kind = f"{plan.mesh.devices.size} x {devices[0].device_kind}"
        expected = predict(plan.objective, program, plan.training.accumulation)
        _say(console, f"{kind}: expected, about {expected}")
        began = time.perf_counter()
        try:
            compiled = program.step.lower(program.state, program.batch).compile()
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
        # The new state takes the place of the old one.
        arguments, scratch = memory.argument_size_in_bytes, memory.temp_size_in_bytes
        new = memory.output_size_in_bytes - memory.alias_size_in_bytes
        _say(
            console,
            f"{kind}: compiled in {seconds:.0f} s, {in_words(arguments + scratch + new)} a device:"
            f" state and batch {in_words(arguments)}, scratch {in_words(scratch)}",
        )
    flops = plan.objective.forward_flops(plan.examples.length)
    if flops is not None:
        step = 3 * flops * plan.training.batch_size
        _say(
            console,
            f"{step:.3g} FLOPs a step by its matrix products,"
            f" {step / plan.mesh.devices.size:.3g} a device",
        )


def devices_of(topology: str) -> Sequence[jax.Device]:
    """The devices that a name stands for; see `dry_run`."""
    if topology == "here":
        return jax.devices()
    name, _, shape = topology.partition(":")
    if name == "cpu":
        if not shape.isdigit() or int(shape) < 1:
            raise ConfigError(f"--dry_run: '{topology}' is no number of devices; write cpu:8")
        with contextlib.suppress(RuntimeError):  # devices were made already
            jax.config.update("jax_num_cpu_devices", int(shape))
        devices = jax.devices("cpu")
        if len(devices) < int(shape):
            raise ConfigError(
                f"--dry_run: {len(devices)} devices of the host were made before {shape} were"
                " asked for"
            )
        return devices[: int(shape)]
    from jax.experimental import topologies

    # libtpu would ask the network what machine this is.
    for variable, value in (
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("TPU_ACCELERATOR_TYPE", "v5litepod-1"),
    ):
        os.environ.setdefault(variable, value)
    try:
        return topologies.get_topology_desc(topology_name=topology, platform="tpu").devices
    except Exception as error:  # each backend raises its own
        raise ConfigError(
            f"--dry_run: no topology '{topology}' here ({str(error).splitlines()[0]}); 'here',"
            " 'cpu:8', or TPUs such as 'v5e:4x4' with the extra installed:"
            " pip install -e '.[tpu]'"
        ) from error


def _say(console: rich.console.Console, line: str) -> None:
    console.print(line, highlight=False, soft_wrap=True)
