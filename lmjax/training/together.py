"""Several seeds of one config, trained side by side in one compiled program.

A step is `jax.vmap` of the step of a single run over the states and batches of all seeds,
[seeds, ...] and [seeds, batch, ...]. All else is each seed's own, as if it trained alone: first
parameters, order of the data, corruption, dropout, evaluation, and all that its directory
holds. So a seed's numbers are those of its run alone, up to the order of a sum.
"""

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from lmjax.data.store import check_data, prepare
from lmjax.errors import ConfigError
from lmjax.training.loop import Run, opened
from lmjax.training.memory import check_model_fits, predict
from lmjax.training.mesh import replicated
from lmjax.training.plan import Plan, PretrainConfig, make_plan
from lmjax.training.program import Program
from lmjax.training.reporting import RunDirectory, TrainingProgress, wide_console
from lmjax.training.sharding import in_words
from lmjax.training.state import TrainState
from lmjax.training.step import Metrics
from lmjax.training.stepping import Stepping
from lmjax.training.watch import DivergedError


def pretrain_together(
    config: ml_collections.ConfigDict,
    workdirs: Mapping[int, str | pathlib.Path],
    name: str,
    begin: Callable[[Any], Any] | None = None,
) -> None:
    """Trains, or continues, the runs of `config` with these seeds, side by side.

    Leaves in each directory what `lmjax.training.loop.pretrain` leaves. Seeds go on together
    from where they stand: those at the same step in one program, those furthest behind first, a
    seed that is alone there as a single run; what is finished is left as it is.

    Args:
      config: whose own seed does not matter.
      workdirs: seed -> directory of its run.
      name: shown beside the progress bar.
      begin: as `pretrain` takes it.

    Raises:
      ConfigError: before anything is compiled or written, for what cannot work; or another
        process is training in one of `workdirs`.
      DivergedError: of one seed, which the message names. All stop; without it the others go
        on from their last checkpoint, and alone it goes back config.training.max_rewinds times.
      PreemptedError: SIGTERM came; all are saved at the step they had reached.
    """
    if not workdirs:
        raise ConfigError("workdirs: empty; name a directory for each seed")
    configs = {seed: _with_seed(config, seed) for seed in workdirs}
    plans = {seed: make_plan(own) for seed, own in configs.items()}
    plan = next(iter(plans.values()))
    _refuse_several_devices(plan)
    check_model_fits(plan.objective.model, plan.mesh, plan.training.batch_size)
    check_data(plan.data)
    directories = {
        seed: RunDirectory(workdir, configs[seed], PretrainConfig)
        for seed, workdir in workdirs.items()
    }
    with jax.set_mesh(plan.mesh), contextlib.ExitStack() as stack:
        for directory in directories.values():
            stack.enter_context(directory.alone())
        tokenizer, stores = prepare(plan.data, ("train", "validation"))
        objective = plan.objective_for(tokenizer.vocabulary(stores["train"].counts))
        runs: list[Run] = []
        for seed, own in plans.items():
            program = runs[0].program if runs else None
            run = opened(own, objective, stores, directories[seed], begin, program)
            runs.append(stack.enter_context(run))
        for directory in directories.values():
            directory.claim(tokenizer)
        for group in _unfinished(runs):
            if len(group) == 1:
                group[0].train(name)
            else:
                Abreast(group).train(name)


def _with_seed(config: ml_collections.ConfigDict, seed: int) -> ml_collections.ConfigDict:
    own = config.copy_and_resolve_references()
    with own.unlocked():
        own.seed = seed
    return own


def _refuse_several_devices(plan: Plan) -> None:
    if plan.mesh.devices.size > 1 or jax.process_count() > 1:
        raise ConfigError(
            f"config.mesh: {plan.mesh.devices.size} devices; seeds train together on one, set"
            " config.mesh.data=1 (and one process) or train them apart"
        )


def _unfinished(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs that stand at the same step, those furthest behind first."""
    groups: dict[int, list[Run]] = {}
    for run in runs:
        with run.kept() as checkpoints:
            groups.setdefault(checkpoints.latest_step() or 0, []).append(run)
    return [groups[step] for step in sorted(groups) if step < runs[0].training.steps]


class Programs:
    """The compiled functions of `count` seeds, made of those of one.

    Attributes:
      stack: the states of the seeds, a list -> one state, [seeds, ...].
      alone: (stacked state, which seed) -> its own.
      step: (stacked state, stacked batch) -> (stacked state, list of the metrics of each seed);
        takes the state's memory over.
    """

    def __init__(self, program: Program, count: int):
        """Compiles nothing yet."""

        def of_seed(tree: Any, which: jax.Array | int) -> Any:
            return jax.tree.map(lambda x: x[which], tree)

        # A product of several seeds is batched, which XLA's CPU backend computes no slower than
        # they one by one: a step of 2 to 8 seeds took 0.56 to 1.04 of the time of single steps,
        # and the same seeds in `jax.lax.map` or unrolled never less than in `jax.vmap`.
        def step(states: TrainState, batches: Any) -> tuple[TrainState, list[Metrics]]:
            states, metrics = jax.vmap(program.step)(states, batches)
            return states, [of_seed(metrics, which) for which in range(count)]

        self.stack = jax.jit(lambda states: jax.tree.map(lambda *x: jnp.stack(x), *states))
        self.alone = jax.jit(of_seed, out_shardings=program.places)
        self.step = jax.jit(step, donate_argnums=0)


class Abreast(Stepping):
    """Runs that differ in their seed alone, step by step together."""

    def __init__(self, runs: Sequence[Run]):
        """Compiles nothing yet; to be called under the mesh.

        Args:
          runs: at the same step, with one `Program`.
        """
        self.runs, self.training = runs, runs[0].training
        self.programs = Programs(runs[0].program, len(runs))
        self.place = replicated(runs[0].mesh)

    def train(self, name: str) -> None:
        """Runs to the last step; continues where the latest checkpoints end."""
        self._tell(name)
        with contextlib.ExitStack() as stack:
            checkpoints = [stack.enter_context(run.kept()) for run in self.runs]
            states, done = zip(
                *(run.start(own) for run, own in zip(self.runs, checkpoints, strict=True)),
                strict=True,
            )
            state = self.programs.stack(states)
            del states  # as much memory again
            progress = stack.enter_context(
                _Progress(len(self.runs), self.training.steps, name, done[0])
            )
            for run, own in zip(self.runs, checkpoints, strict=True):
                stack.enter_context(run.writing(done[0], own, progress))
            self.advance(state, done[0])

    def _tell(self, name: str) -> None:
        """What the device will hold."""
        run = self.runs[0]
        one = predict(run.objective, run.program, self.training.accumulation)
        limit = (run.mesh.devices.flat[0].memory_stats() or {}).get("bytes_limit")
        of = f" of {in_words(limit)}" if limit else ""
        wide_console(stderr=True).print(
            f"{name}: {len(self.runs)} seeds, about {in_words(len(self.runs) * one.total)}{of};"
            f" each about {one}",
            highlight=False,
            soft_wrap=True,
        )

    def step(self, step: int, state: TrainState) -> TrainState:
        rows = [next(run.train_data) for run in self.runs]
        batch = jax.device_put(jax.tree.map(lambda *x: np.stack(x), *rows), self.place)
        state, metrics = self.programs.step(state, batch)
        for run, own in zip(self.runs, metrics, strict=True):
            with _naming(run):
                run.note(step, own)
        return state

    def flush(self) -> None:
        for run in self.runs:
            with _naming(run):
                run.flush()

    def look_up(self, step: int, state: TrainState, evaluate: bool, save: bool) -> None:
        for which, run in enumerate(self.runs):
            run.look_up(step, self.programs.alone(state, which), evaluate, save)

    def restart(self) -> None:
        for run in self.runs:
            run.restart()

    def wait(self) -> str:
        return ", ".join(run.wait() for run in self.runs)


@contextlib.contextmanager
def _naming(run: Run) -> Iterator[None]:
    """Says which seed went wrong."""
    try:
        yield
    except DivergedError as error:
        raise DivergedError(
            error.step,
            error.batches,
            f"seed {run.seed}: {error.reason}",
            f"Without it the same call goes on with the others; {run.directory.path} can be"
            " trained apart.",
        ) from error


class _Progress(TrainingProgress):
    """One bar for all seeds: the mean of their losses, the sum of their rates."""

    def __init__(self, seeds: int, total: int, description: str, start: int):
        super().__init__(total, description, start)
        self._seeds = seeds
        self._told: list[tuple[float, float]] = []

    def update(self, step: int, loss: float, tokens_per_second: float) -> None:
        self._told.append((loss, tokens_per_second))
        if len(self._told) == self._seeds:
            losses, rates = zip(*self._told, strict=True)
            self._told = []
            super().update(step, sum(losses) / self._seeds, sum(rates))
