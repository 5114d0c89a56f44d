"""Checkpoints of a run, written asynchronously and atomically by orbax.

A checkpoint appears under its step by an atomic rename, so a process killed while it saves leaves
the previous checkpoint as the latest one.
"""

import contextlib
import dataclasses
import math
import pathlib
import re
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.traverse_util
import jax
import numpy as np
from jax.errors import JaxRuntimeError
from orbax.checkpoint import v1 as ocp

from lmjax.errors import ConfigError

_STATE = "state"
_DATA = "data_state"


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read; the other checkpoints are intact."""


@dataclasses.dataclass(frozen=True)
class Retention:
    """Which checkpoints to keep: all that any of these selects.

    Attributes:
      latest: the number of latest checkpoints, at least 1.
      every: keep steps that are multiples of it; 0 = none.
      best: the number of checkpoints of lowest held-out loss.
    """

    latest: int = 2
    every: int = 0
    best: int = 0

    def policy(self) -> Any:
        """The policy of orbax."""
        policies = ocp.training.preservation_policies
        wanted: list[Any] = [policies.LatestN(self.latest)]
        if self.every:
            wanted.append(policies.EveryNSteps(self.every))
        if self.best:
            wanted.append(policies.BestN(get_metric_fn=_held_out_loss, reverse=True, n=self.best))
        return policies.AnyPreservationPolicy(wanted)


def _held_out_loss(metrics: Mapping[str, float]) -> float:
    return metrics.get("loss", math.inf)


class Checkpoints:
    """The checkpoints in a directory, as a context manager.

    The state is stored flat, under dotted names such as `params.trunk.embedding`, so that a
    checkpoint does not depend on the classes of the state, and a part of it can be read alone.
    """

    def __init__(self, directory: str | pathlib.Path, keep: Retention = Retention()):
        """Opens or creates `directory`, and removes the remains of killed saves.

        Args:
          directory: has one subdirectory per step.
          keep: which checkpoints to keep.
        """
        self._checkpointer = ocp.training.Checkpointer(
            pathlib.Path(directory).absolute(),
            preservation_policy=keep.policy(),
            cleanup_tmp_directories=True,
        )
        self._current: set[int] = set()  # saved steps that belong to this run

    def save(
        self,
        step: int,
        state: Any,
        data_state: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Starts to save; returns when the arrays are copied, so that they may be donated.

        Saving a step again does nothing, except that it replaces a checkpoint of an earlier
        process that is later than the checkpoint which this run was restored from.

        Args:
          step: updates made.
          state: pytree of jax arrays.
          data_state: position in the data, plain JSON.
          metrics: held-out metrics to store; `loss` selects the best checkpoints.
        """
        if step in self._current:
            return
        with self._writing():
            self._checkpointer.save_checkpointables_async(
                step,
                # orbax refuses arrays without elements.
                {_STATE: {name: leaf for name, leaf in _flatten(state).items() if leaf.size}},
                force=True,
                overwrite=step in self.steps(),
                metrics={name: float(value) for name, value in (metrics or {}).items()},
                custom_metadata={_DATA: dict(data_state)},
            )
        self._current.add(step)

    def restore(
        self, step: int | None, abstract_state: Any, partial: bool = False
    ) -> tuple[Any, dict[str, Any]]:
        """Restores a checkpoint onto any mesh.

        Args:
          step: to restore; None restores the latest.
          abstract_state: pytree of ShapeDtypeStructs with shardings, or of arrays.
          partial: restore only the leaves of `abstract_state`, such as `{"params": ...}`.

        Returns:
          The state, of the structure of `abstract_state`, and the data state.

        Raises:
          ConfigError: no such checkpoint, or its tensors are not those of `abstract_state`.
        """
        self.wait()
        if step is None:
            step = self.latest_step()
        directory = self._checkpointer.directory
        if step is None or step not in self.steps():
            known = ", ".join(map(str, self.steps())) or "none"
            which = "no checkpoint" if step is None else f"no checkpoint of step {step}"
            raise ConfigError(f"--workdir: {which} in {directory}; steps there: {known}")
        wanted = {name: _placed(leaf) for name, leaf in _flatten(abstract_state).items()}
        with self._reading(step):
            described = self._checkpointer.checkpointables_metadata(step)
        _check_same_tensors(wanted, described.metadata[_STATE], f"{directory}/{step}", partial)
        context = ocp.Context()
        context.pytree.loading.partial_load = partial
        with context, self._reading(step):
            loaded = ocp.load_checkpointables(
                f"{directory}/{step}",
                {_STATE: {name: leaf for name, leaf in wanted.items() if leaf.size}},
            )[_STATE]
        for name, leaf in wanted.items():
            if not leaf.size:
                loaded[name] = jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding)
        self._current = {known for known in self.steps() if known <= step}
        treedef = jax.tree.structure(abstract_state)
        state = jax.tree.unflatten(treedef, [loaded[name] for name in wanted])
        return state, described.custom_metadata[_DATA]

    def data_state(self, step: int) -> dict[str, Any]:
        """The position in the data of a checkpoint."""
        self.wait()
        with self._reading(step):
            return self._checkpointer.checkpointables_metadata(step).custom_metadata[_DATA]

    def steps(self) -> list[int]:
        """Steps of the checkpoints, ascending, including the one being saved."""
        return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

    def latest_step(self) -> int | None:
        """The step of the latest checkpoint, or None."""
        steps = self.steps()
        return steps[-1] if steps else None

    def wait(self) -> None:
        """Waits for the save in progress; raises its error."""
        with self._writing():
            self._checkpointer.wait()

    def close(self) -> None:
        """Waits and releases the threads. Without it the last save may be lost."""
        with self._writing():
            self._checkpointer.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        # Do not wait after a failed save, or, after an error in one of several processes, for
        # processes that may be lost.
        if kind is None or (not issubclass(kind, CheckpointError) and jax.process_count() == 1):
            self.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            if jax.process_count() > 1 and isinstance(error, JaxRuntimeError):
                raise  # another process was lost
            raise CheckpointError(
                f"{self._checkpointer.directory}: a checkpoint cannot be written"
                f" ({_reason(error)}); earlier checkpoints are intact, fix the cause and rerun the"
                " same command to resume"
            ) from error

    @contextlib.contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the type depends on the library and the damage
            earlier = [known for known in self.steps() if known < step]
            after = f"from step {earlier[-1]}" if earlier else "from the beginning"
            raise CheckpointError(
                f"{self._checkpointer.directory}/{step}: cannot be read ({_reason(error)});"
                f" move it away and rerun the same command to resume {after}"
            ) from error


def read_part(
    directory: str | pathlib.Path,
    part: str,
    check: Callable[[Mapping[str, jax.ShapeDtypeStruct]], None] = lambda shapes: None,
) -> dict[str, Any]:
    """Reads a part of the state, such as 'params', from the latest checkpoint in `directory`.

    Does not write, so that it does not disturb a run that is still writing there.

    Args:
      directory: of the checkpoints.
      part: the field of the state.
      check: is called before an array is allocated, with the shapes of the arrays by their paths,
        such as 'encoder/token/embedding'; it may raise to refuse them.

    Returns:
      Nested dict of arrays on the first device.

    Raises:
      ConfigError: no checkpoint there, or one that cannot be read.
    """
    place = pathlib.Path(directory).absolute()
    found = place.iterdir() if place.is_dir() else ()
    steps = [int(child.name) for child in found if child.name.isdigit()]
    if not steps:
        raise ConfigError(f"{directory}: no checkpoint in it; has the run saved one yet?")
    latest = str(place / str(max(steps)))
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with _opening(latest):
        stored = ocp.checkpointables_metadata(latest).metadata[_STATE]
        wanted = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
            for name, leaf in stored.items()
            if name.startswith(f"{part}.")
        }
    paths = {name: tuple(name.split(".")[1:]) for name in wanted}
    check({"/".join(paths[name]): leaf for name, leaf in wanted.items()})
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context, _opening(latest):
        flat = ocp.load_checkpointables(latest, {_STATE: wanted})[_STATE]
    return flax.traverse_util.unflatten_dict({paths[name]: leaf for name, leaf in flat.items()})


@contextlib.contextmanager
def _opening(checkpoint: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the type depends on the library and the damage
        raise ConfigError(
            f"{checkpoint}: cannot be read ({_reason(error)}); is it complete?"
        ) from error


def _reason(error: BaseException) -> str:
    """One line about an error; the message of the operating system if it has one."""
    system = re.search(r"[^:]+ \[os_error_code=.*?\]", str(error))
    if system:
        return system[0].split(" [os_error")[0].strip()
    deeper = error.__cause__ or error.__context__
    if deeper is not None:
        return _reason(deeper)
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    return first if len(first) <= 200 else f"{first[:200]}..."


def _flatten(tree: Any) -> dict[str, Any]:
    """Dotted path -> leaf, in the order of the leaves."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _check_same_tensors(
    wanted: Mapping[str, Any], stored: Mapping[str, Any], where: str, partial: bool
) -> None:
    """Raises a ConfigError that names the first tensor that differs."""
    remedy = "it belongs to another config; restore it under its own, or use another --workdir"
    for name, leaf in wanted.items():
        if name not in stored and not leaf.size:
            continue
        if name not in stored:
            raise ConfigError(f"config.model: checkpoint {where} has no tensor '{name}'; {remedy}")
        shape, kept = _stored_shape(leaf), tuple(stored[name].shape)
        if shape != kept:
            raise ConfigError(
                f"config.model: tensor '{name}' is {list(kept)} in checkpoint {where} and "
                f"{list(shape)} in this config; {remedy}"
            )
    extra = [name for name in stored if name not in wanted]
    if extra and not partial:
        raise ConfigError(
            f"config.model: checkpoint {where} has a tensor '{extra[0]}' "
            f"that this config does not have; {remedy}"
        )


def _placed(leaf: Any) -> jax.ShapeDtypeStruct:
    """The leaf as a ShapeDtypeStruct with a sharding, by default that of the first device."""
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _stored_shape(leaf: Any) -> tuple[int, ...]:
    """The stored shape of a leaf; typed PRNG keys are stored as integers."""
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return tuple(jax.eval_shape(jax.random.key_data, leaf).shape)
    return tuple(leaf.shape)
