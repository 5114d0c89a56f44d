"""The run: from a config and a directory to trained parameters."""

import contextlib
import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import jax
import ml_collections
import numpy as np
import optax

from lmjax.data.loader import Loader
from lmjax.data.store import TokenStore, check_data, prepare
from lmjax.data.tokenizers import Tokenizer
from lmjax.objectives.base import Objective
from lmjax.training.checkpoints import Checkpoints, Retention
from lmjax.training.devices import peak_flops
from lmjax.training.distributed import noticing_lost_processes
from lmjax.training.memory import check_model_fits, predict
from lmjax.training.mesh import global_batch
from lmjax.training.optimizers import OptimizerConfig, make_optimizer
from lmjax.training.plan import Plan, PretrainConfig, TrainingConfig, make_plan
from lmjax.training.program import Program
from lmjax.training.reporting import (
    MetricsWriter,
    RunDirectory,
    TrainingProgress,
    read_metrics,
    wide_console,
)
from lmjax.training.schedules import Schedule
from lmjax.training.sharding import layout
from lmjax.training.state import TrainState
from lmjax.training.step import Metrics
from lmjax.training.stepping import Stepping
from lmjax.training.watch import DivergedError, EventsWriter, Speed, Watch, means_of


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run ends with.

    Attributes:
      objective: over the real vocabulary.
      params: the last parameters (their moving average where there is one).
      tokenizer: what the ids mean.
      batch: a clean held-out batch, for a look at what the model does.
      mems: memory to read that batch with, or None.
      records: the lines of metrics.jsonl.
      parameters: how many numbers the parameters are.
    """

    objective: Objective
    params: Any
    tokenizer: Tokenizer
    batch: dict[str, np.ndarray]
    mems: Any
    records: list[dict[str, Any]]
    parameters: int


def pretrain(
    config: ml_collections.ConfigDict,
    workdir: str | pathlib.Path,
    name: str = "",
    begin: Callable[[Any], Any] | None = None,
) -> Result:
    """Trains, or continues, the run of `config` in `workdir`.

    Args:
      name: shown beside the progress bar; '' is the objective's.
      begin: makes the parameters of step 0 of random ones; None = takes them as they are.

    Raises:
      ConfigError: before anything is compiled or written, for what cannot work; or another
        process is training in `workdir`.
      DivergedError: the loss is not finite or rises; nothing after it is saved.
      PreemptedError: SIGTERM came; the run is saved at the step it had reached.
      LostProcessError: another process of the run is gone.
    """
    plan = make_plan(config)
    check_model_fits(plan.objective.model, plan.mesh, plan.training.batch_size)
    check_data(plan.data)
    directory = RunDirectory(workdir, config, PretrainConfig)
    with directory.alone():
        tokenizer, stores = prepare(plan.data, ("train", "validation"))
        objective = plan.objective_for(tokenizer.vocabulary(stores["train"].counts))
        with (
            jax.set_mesh(plan.mesh),
            opened(plan, objective, stores, directory, begin) as run,
            noticing_lost_processes(),
        ):
            directory.claim(tokenizer)
            state = run.train(name or type(objective).__name__)
        params = state.params if state.ema is None else state.ema
        return Result(
            objective=objective,
            params=params,
            tokenizer=tokenizer,
            batch=run.held_out_data.batch_at(0),
            mems=objective.init_mems(plan.training.batch_size),
            records=read_metrics(directory.path),
            parameters=sum(leaf.size for leaf in jax.tree.leaves(params)),
        )


def check_run(config: ml_collections.ConfigDict) -> None:
    """Refuses a run that could not begin; writes nothing but prepared text, in its cache.

    Raises:
      ConfigError: as `pretrain`.
    """
    plan = make_plan(config)
    check_model_fits(plan.objective.model, plan.mesh, plan.training.batch_size)
    check_data(plan.data)
    tokenizer, stores = prepare(plan.data, ("train", "validation"))
    objective = plan.objective_for(tokenizer.vocabulary(stores["train"].counts))
    with _loaders(plan, objective, stores):
        pass


class Batches(Protocol):
    """What a run reads: an endless iterator that knows where it is; see `Loader`."""

    @property
    def batches_per_epoch(self) -> int: ...
    @property
    def index(self) -> int: ...
    def batch_at(self, index: int) -> dict[str, np.ndarray]: ...
    def __next__(self) -> dict[str, np.ndarray]: ...
    def skip(self, batches: Iterable[int]) -> None: ...
    def get_state(self) -> dict[str, Any]: ...
    def set_state(self, state: dict[str, Any]) -> None: ...


class Run(Stepping):
    """One run's compiled functions and its bookkeeping; `train` is the whole of it.

    A subclass may train some of the parameters (`transformation`) and look at held-out data in
    its own way (`evaluate`).
    """

    def __init__(
        self,
        objective: Objective,
        directory: RunDirectory,
        data: Mapping[str, Batches],
        *,
        seed: int,
        training: TrainingConfig,
        optimizer: OptimizerConfig,
        mesh: jax.sharding.Mesh,
        length: int,
        bytes_per_token: float = 1.0,
        begin: Callable[[Any], Any] | None = None,
        program: Program | None = None,
    ):
        """Compiles nothing yet; to be called under the mesh.

        Args:
          data: of the splits train and validation.
          length: of an example, in tokens.
          bytes_per_token: of the held-out text, for objectives that score every token.
          begin: makes the parameters of step 0 of random ones.
          program: of a run that differs from this one in its seed alone; None makes it.
        """
        self.objective, self.directory = objective, directory
        self.seed, self.training, self.mesh = seed, training, mesh
        self.train_data, self.held_out_data = data["train"], data["validation"]
        self.events = EventsWriter(directory.path)
        self.held_out_bytes_per_token = bytes_per_token
        self.begin = begin
        if program is None:
            row = {name: array[0] for name, array in self.train_data.batch_at(0).items()}
            program = Program(objective, row, training, optimizer, mesh, self.transformation)
        self.program = program
        flops = objective.forward_flops(length)
        # A backward pass costs twice the forward pass.
        self.flops_per_step = None if flops is None else 3 * flops * training.batch_size
        dtype = getattr(getattr(objective.model, "trunk", None), "dtype", "float32")
        peak = peak_flops(mesh.devices.flat[0], dtype)
        self.peak_flops = None if peak is None else peak * mesh.devices.size

    def transformation(
        self, config: OptimizerConfig, steps: int, shapes: Any
    ) -> tuple[optax.GradientTransformation, Schedule]:
        """What makes updates of gradients. shapes: tree like the parameters."""
        return make_optimizer(config, steps, shapes)

    def first_state(self) -> TrainState:
        """The state before the first step."""
        state = self.program.initial(np.uint32(self.seed % 2**32))
        if self.begin is None:
            return state
        params = self.begin(state.params)
        ema = None if state.ema is None else jax.tree.map(jax.numpy.copy, params)
        return dataclasses.replace(state, params=params, ema=ema)

    def train(self, name: str) -> TrainState:
        """Runs to the last step; continues where the latest checkpoint ends.

        Says before anything is compiled who holds what on several devices, and about what each
        will hold.
        """
        t = self.training
        with self.kept() as checkpoints:
            rewinds = 0
            if (checkpoints.latest_step() or 0) < t.steps:
                self._tell(name)
            while True:
                state, done = self.start(checkpoints)
                try:
                    return self._advance(state, done, checkpoints, name)
                except DivergedError as error:
                    good = checkpoints.latest_step()
                    if rewinds == t.max_rewinds or good is None or not error.batches:
                        raise
                    rewinds += 1
                    # The batches are passed over from now on, in later lives of the run too.
                    self.train_data.skip(error.batches)
                    self.events.write(
                        error.step, error.batches, error.reason, f"back to step {good} without them"
                    )

    def kept(self) -> Checkpoints:
        """The checkpoints of this run, to be closed."""
        t = self.training
        retention = Retention(
            t.checkpoints_to_keep, t.keep_checkpoint_every, t.best_checkpoints_to_keep
        )
        return Checkpoints(self.directory.checkpoints, retention)

    def start(self, checkpoints: Checkpoints) -> tuple[TrainState, int]:
        """The state to go on from, and its step: of the latest checkpoint, or the first."""
        if checkpoints.latest_step() is None:
            return self.first_state(), 0
        state, data_state = checkpoints.restore(None, self.program.state)
        self.train_data.set_state(data_state)
        return state, int(state.step)

    def _tell(self, name: str) -> None:
        """What the devices will hold, from the first process."""
        if jax.process_index() != 0:
            return
        console = wide_console(stderr=True)
        if self.mesh.devices.size > 1:
            console.print(layout(self.program.state, self.mesh))
        expected = predict(self.objective, self.program, self.training.accumulation)
        console.print(f"{name}: about {expected}", highlight=False, soft_wrap=True)

    def _advance(
        self, state: TrainState, done: int, checkpoints: Checkpoints, name: str
    ) -> TrainState:
        """From step `done` to the last one."""
        t = self.training
        if done >= t.steps:
            return state
        with (
            TrainingProgress(t.steps, name, done) as progress,
            self.writing(done, checkpoints, progress),
        ):
            return self.advance(state, done)

    @contextlib.contextmanager
    def writing(
        self, done: int, checkpoints: Checkpoints, progress: TrainingProgress
    ) -> Iterator[None]:
        """Opens what is written from step `done` on; the methods below need it open."""
        with MetricsWriter(self.directory.path, done) as self.writer:
            self.checkpoints = checkpoints
            self.watch = Watch(
                self.training,
                self.program.paths,
                self.program.schedule,
                Speed(self.flops_per_step, self.peak_flops),
                self.writer,
                progress,
                self.events,
                lambda: self._advice(checkpoints.latest_step()),
            )
            yield

    def step(self, step: int, state: TrainState) -> TrainState:
        batch = global_batch(next(self.train_data), self.mesh, self.training.batch_size)
        state, metrics = self.program.step(state, batch)
        self.note(step, metrics)
        return state

    def note(self, step: int, metrics: Metrics) -> None:
        """Takes note of the step that the last batch went into."""
        self.watch.add(step, self.train_data.index, metrics)

    def flush(self) -> None:
        self.watch.flush()

    def look_up(self, step: int, state: TrainState, evaluate: bool, save: bool) -> None:
        held_out = {}
        if evaluate:
            held_out = self.evaluate(state)
            bad = [name for name, value in held_out.items() if not math.isfinite(value)]
            if bad:
                reason = f"on held-out data '{bad[0]}' is {held_out[bad[0]]}"
                raise DivergedError(step, [], reason, self._advice(self.checkpoints.latest_step()))
            self.writer.write(step, held_out, "validation")
        if save:
            self.checkpoints.save(step, state, self.train_data.get_state(), held_out)

    def restart(self) -> None:
        self.watch.restart()

    def wait(self) -> str:
        self.checkpoints.wait()
        return str(self.directory.path)

    def _advice(self, good: int | None) -> str:
        kept = (
            "No checkpoint was saved before it."
            if good is None
            else f"The last good checkpoint is that of step {good} in {self.directory.path}."
        )
        return f"{kept} A lower config.optimizer.learning_rate or a longer warmup may help."

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Means over the same held-out batches, with the same corruption, every time."""
        t = self.training
        params = state.params if state.ema is None else state.ema
        batches = min(t.eval_batches, self.held_out_data.batches_per_epoch)
        mems = jax.tree.map(lambda leaf: jax.numpy.zeros_like(leaf), state.mems)
        key = jax.random.key(self.seed)
        sums = []
        for i in range(batches):
            batch = global_batch(self.held_out_data.batch_at(i), self.mesh, t.batch_size)
            found, mems = self.program.evaluate(params, mems, jax.random.fold_in(key, i), batch)
            sums.append(found)
        means = means_of(jax.device_get(sums))
        if self.objective.scores_every_token:
            nats = means[self.objective.headline]
            means["bits_per_byte"] = nats / math.log(2) / self.held_out_bytes_per_token
        return means


@contextlib.contextmanager
def opened(
    plan: Plan,
    objective: Objective,
    stores: Mapping[str, TokenStore],
    directory: RunDirectory,
    begin: Callable[[Any], Any] | None = None,
    program: Program | None = None,
) -> Iterator[Run]:
    """The run of a plan, reading its text; to be called under the mesh.

    Args:
      objective: `plan.objective_for` the vocabulary of the text.
      stores: the text of the splits train and validation.
      begin, program: as `Run` takes them.
    """
    with _loaders(plan, objective, stores) as loaders:
        held_out = stores["validation"]
        yield Run(
            objective,
            directory,
            loaders,
            seed=plan.seed,
            training=plan.training,
            optimizer=plan.optimizer,
            mesh=plan.mesh,
            length=plan.examples.length,
            bytes_per_token=held_out.bytes / len(held_out.tokens),
            begin=begin,
            program=program,
        )


@contextlib.contextmanager
def _loaders(
    plan: Plan, objective: Objective, stores: Mapping[str, TokenStore]
) -> Iterator[Mapping[str, Loader]]:
    """The batches of each split; closed at the end."""
    with contextlib.ExitStack() as stack:
        loaders = {}
        for split, store in stores.items():
            loaders[split] = Loader(
                plan.examples,
                store,
                objective.vocabulary,
                batch_size=plan.training.batch_size,
                seed=plan.seed,
                split=split,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
                shuffle=split == "train",
            )
            stack.callback(loaders[split].close)
        yield loaders
