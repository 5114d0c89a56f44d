"""The training loop: from a config and a directory to trained parameters.

`pretrain` sets a run up, `train` restores it from its last checkpoint, and `_train_steps` is the
loop itself. Fine-tuning sets up its own run and calls `train` too.
"""

import contextlib
import dataclasses
import fractions
import math
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from lmjax.data.loader import Loader
from lmjax.data.store import TokenStore, check_data, prepare
from lmjax.data.tokenizers import Tokenizer
from lmjax.errors import ConfigError
from lmjax.objectives.base import Objective
from lmjax.training.checkpoints import Checkpoints, Retention
from lmjax.training.evaluators import Evaluator, evaluate_all
from lmjax.training.memory_estimate import check_model_fits, estimate_memory
from lmjax.training.monitor import (
    DivergedError,
    EventsWriter,
    Monitor,
    Profile,
    Speed,
    TrainingProgress,
    check_profile,
    due,
    means_of,
    peak_flops,
    wide_console,
)
from lmjax.training.multihost import PreemptedError, Preemption, detect_lost_processes
from lmjax.training.optimizers import OptimizerConfig, make_optimizer
from lmjax.training.plan import Plan, PretrainConfig, make_plan
from lmjax.training.run_directory import MetricsWriter, OnMetrics, RunDirectory, read_metrics
from lmjax.training.sharding import global_batch, layout
from lmjax.training.step import Program, TrainState

WarmStart = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of a pretraining run.

    Attributes:
      objective: over the vocabulary of the tokenizer.
      params: the last parameters, or their moving average if the run has one.
      tokenizer: of the run.
      batch: a clean held-out batch, to try the model on.
      mems: memory to read that batch with, or None.
      records: the lines of metrics.jsonl.
      parameters: the number of parameters.
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
    warm_start: WarmStart | None = None,
    on_metrics: OnMetrics | None = None,
    profile: tuple[int, int] | None = None,
) -> Result:
    """Trains the run of `config` in `workdir`, or resumes it from its last checkpoint.

    Args:
      config: see `lmjax.training.plan`.
      workdir: directory of the run.
      name: shown next to the progress bar; '' shows the name of the objective.
      warm_start: (random parameters) -> parameters before the first step.
      on_metrics: is called with the step and the metrics of each line of metrics.jsonl, under
        names such as 'train/loss' and 'validation/loss', in the first process.
      profile: the first and the last step to profile, into `workdir`/profile.

    Raises:
      ConfigError: the config cannot work, or another process is training in `workdir`. It is
        raised before anything is compiled or written.
      DivergedError: the loss, or a result of an evaluator, is not finite, or the loss rises;
        the run saves no checkpoint after that step.
      PreemptedError: the process received SIGTERM; the run saved a checkpoint.
      LostProcessError: another process of the run was lost.
    """
    plan = make_plan(config)
    _check_fits(plan)
    check_data(plan.data)
    directory = RunDirectory(workdir, config, PretrainConfig)
    with directory.locked():
        tokenizer, stores = prepare(plan.data, ("train", "validation"))
        with (
            jax.set_mesh(plan.mesh),
            _loaders(plan, tokenizer, stores) as loaders,
            detect_lost_processes(),
        ):
            phases = _run_phases(plan, tokenizer, stores, loaders)
            directory.claim(tokenizer)
            state = train(
                phases,
                directory,
                name=name or type(plan.objective).__name__,
                seed=plan.seed,
                warm_start=warm_start,
                on_metrics=on_metrics,
                profile=profile,
            )
            batch = loaders[-1]["validation"].batch_at(0)
        program, params = phases[-1].program, averaged_params(state)
        return Result(
            objective=program.objective,
            params=params,
            tokenizer=tokenizer,
            batch=batch,
            mems=program.objective.init_mems(program.training.batch_size),
            records=read_metrics(directory.path),
            parameters=sum(leaf.size for leaf in jax.tree.leaves(params)),
        )


def check_run(config: ml_collections.ConfigDict) -> None:
    """Checks that a run could start; writes only prepared text, to its cache.

    Raises:
      ConfigError: as `pretrain`.
    """
    plan = make_plan(config)
    _check_fits(plan)
    check_data(plan.data)
    tokenizer, stores = prepare(plan.data, ("train", "validation"))
    with _loaders(plan, tokenizer, stores):
        pass


def _check_fits(plan: Plan) -> None:
    for phase in plan.phases:
        check_model_fits(phase.objective.model, plan.mesh, phase.training.batch_size)


class Batches(Protocol):
    """The training data of a run: an endless iterator with a position; see `Loader`."""

    @property
    def batches_per_epoch(self) -> int: ...
    @property
    def index(self) -> int: ...
    def batch_at(self, index: int) -> dict[str, np.ndarray]: ...
    def __next__(self) -> dict[str, np.ndarray]: ...
    def skip(self, batches: Iterable[int]) -> None: ...
    def get_state(self) -> dict[str, Any]: ...
    def set_state(self, state: dict[str, Any]) -> None: ...


@dataclasses.dataclass(frozen=True)
class RunPhase:
    """A phase of a run, ready to train.

    Attributes:
      program: the compiled functions, under the mesh of the run.
      data: training batches.
      evaluate: state -> metrics on held-out data.
      length: tokens of an example, for the FLOPs of a step.
      end: updates made at its end.
      start: updates made before it.
      first_batch: index of its first batch.
      name: '' for the first phase.
      evaluators: by name.
    """

    program: Program
    data: Batches
    evaluate: Callable[[TrainState], dict[str, float]]
    length: int
    end: int
    start: int = 0
    first_batch: int = 0
    name: str = ""
    evaluators: Mapping[str, Evaluator] = dataclasses.field(default_factory=dict)

    def begin(self, state: TrainState) -> TrainState:
        """Moves to the first batch. Returns the state with the memory of no earlier text."""
        self.data.set_state({"next_batch": self.first_batch, "skipped": []})
        rows = self.program.training.batch_size
        mems = jax.jit(
            lambda: self.program.objective.init_mems(rows),
            out_shardings=self.program.shardings.mems,
        )()
        return dataclasses.replace(state, mems=mems)


def train(
    phases: Sequence[RunPhase],
    directory: RunDirectory,
    *,
    name: str,
    seed: int,
    warm_start: WarmStart | None = None,
    on_metrics: OnMetrics | None = None,
    profile: tuple[int, int] | None = None,
) -> TrainState:
    """Trains to the last step, from the last checkpoint if there is one.

    After divergence it returns to the last checkpoint and skips the batches that caused it, up
    to `config.training.max_rewinds` times.

    Args:
      phases: of the run, in order; call `train` under their mesh.
      directory: of the run, locked.
      name: shown next to the progress bar.
      seed: of the parameters and of all randomness of the steps.
      warm_start, on_metrics, profile: as in `pretrain`.

    Returns:
      The state after the last step.

    Raises:
      ConfigError, DivergedError, PreemptedError: as `pretrain`.
    """
    t, steps = phases[0].program.training, phases[-1].end
    events = EventsWriter(directory.path)
    retention = Retention(
        t.checkpoints_to_keep, t.keep_checkpoint_every, t.best_checkpoints_to_keep
    )
    rewinds = 0
    with Checkpoints(directory.checkpoints, retention) as checkpoints:
        done = checkpoints.latest_step() or 0
        check_profile(profile, done, steps)
        if done < steps:
            _print_memory(_phase_at(phases, done + 1).program, name)
        while True:
            latest = checkpoints.latest_step()
            if latest is None:
                state, done = _initial_state(phases[0].program, seed, warm_start), 0
            else:
                phase = _phase_at(phases, min(latest, steps))
                if checkpoints.data_state(latest).get("phase", phase.name) != phase.name:
                    raise ConfigError(
                        f"config.training.steps: with {steps}, step {latest} belongs to another"
                        " phase than when its checkpoint was saved; keep the number of steps"
                    )
                state, position = checkpoints.restore(None, phase.program.abstract_state)
                phase.data.set_state(position)
                done = int(state.step)
            if done >= steps:
                return state
            try:
                return _train_steps(
                    phases, directory, checkpoints, events, state, done,
                    name=name, on_metrics=on_metrics, profile=profile,
                )  # fmt: skip
            except DivergedError as error:
                good = checkpoints.latest_step()
                if rewinds == t.max_rewinds or good is None or not error.batches:
                    raise
                rewinds += 1
                # The position in the data stores what is skipped: resumed runs skip it too.
                _phase_at(phases, error.step).data.skip(error.batches)
                action = f"back to step {good} without them"
                events.write(error.step, error.batches, error.reason, action)


def _phase_at(phases: Sequence[RunPhase], step: int) -> RunPhase:
    """The phase that makes update `step`, counted from 1; the first phase for step 0."""
    return next(phase for phase in phases if step <= phase.end)


def _train_steps(
    phases: Sequence[RunPhase],
    directory: RunDirectory,
    checkpoints: Checkpoints,
    events: EventsWriter,
    state: TrainState,
    done: int,
    *,
    name: str,
    on_metrics: OnMetrics | None,
    profile: tuple[int, int] | None,
) -> TrainState:
    """The loop from step `done` + 1 to the last step; see `train`."""
    steps, phase = phases[-1].end, _phase_at(phases, done)
    program, t = phase.program, phase.program.training

    def advice() -> str:
        good = checkpoints.latest_step()
        kept = (
            "No checkpoint was saved before it."
            if good is None
            else f"The last good checkpoint is that of step {good} in {directory.path}."
        )
        return f"{kept} A lower config.optimizer.learning_rate or a longer warmup may help."

    def step_hlo() -> str:
        lowered = program.step.lower(program.abstract_state, program.abstract_batch)
        return lowered.compile().as_text() or ""

    with (
        MetricsWriter(directory.path, done, on_metrics) as writer,
        TrainingProgress(steps, name, done) as progress,
        Profile(directory.path / "profile", profile, step_hlo, progress.print) as profiler,
        Preemption() as preemption,
    ):

        def monitor_phase() -> Monitor:
            return Monitor(
                t,
                program.param_names,
                program.schedule,
                _speed(program, phase.length),
                writer,
                progress,
                events,
                advice,
            )

        def evaluate_and_write(
            step: int, held_out: bool, evaluators: Mapping[str, Evaluator]
        ) -> dict[str, float]:
            """Returns the metrics on held-out data, if they are evaluated."""
            metrics = phase.evaluate(state) if held_out else {}
            _check_finite(step, metrics, "on held-out data", advice)
            if metrics:
                writer.write(step, metrics, "validation")
            results = evaluate_all(evaluators, averaged_params(state), step)
            _check_finite(step, results, "evaluator result", advice)
            if results:
                writer.write(step, results, "evaluators")
                shown = "  ".join(f"{key} {value:.4g}" for key, value in results.items())
                progress.print(f"step {step}/{steps}  {shown}")
            return metrics

        monitor = monitor_phase()
        if done == 0:
            evaluate_and_write(0, held_out=True, evaluators=phase.evaluators)
        monitor.restart_clock()

        for step in range(done + 1, steps + 1):
            if step > phase.end:
                phase = _phase_at(phases, step)
                program, t = phase.program, phase.program.training
                progress.print(f"step {step}/{steps}  phase '{phase.name}' begins")
                state, monitor = phase.begin(state), monitor_phase()

            # Update the parameters.
            batch = global_batch(next(phase.data), program.mesh, t.batch_size)
            profiler.start(step)
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                state, metrics = program.step(state, batch)
            profiler.stop(step, state)

            # Log every `log_every` steps; raises DivergedError for an earlier step.
            monitor.add(step, phase.data.index, metrics)

            last = step == steps
            stop = not last and preemption.requested(step)
            # A phase ends with a checkpoint, so that no other phase is trained again.
            evaluating = step == phase.end or due(step, t.eval_every)
            saving = step == phase.end or stop or due(step, t.checkpoint_every)
            evaluators_now = {
                key: evaluator
                for key, evaluator in phase.evaluators.items()
                if last or due(step, evaluator.every)
            }
            if not (evaluating or saving or evaluators_now):
                continue
            # Check all steps so far, so that no diverged state is evaluated or saved.
            monitor.flush()

            held_out = evaluate_and_write(step, evaluating, evaluators_now)
            if saving:
                position = phase.data.get_state()
                if len(phases) > 1:
                    position["phase"] = phase.name
                checkpoints.save(step, state, position, held_out)
            if stop:
                checkpoints.wait()
                raise PreemptedError(
                    f"step {step}: received SIGTERM; saved a checkpoint in {directory.path},"
                    " rerun the same command to resume"
                )
            monitor.restart_clock()
    return state


def _check_finite(
    step: int, metrics: Mapping[str, float], what: str, advice: Callable[[], str]
) -> None:
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise DivergedError(step, [], f"{what} '{name}' is {value}", advice())


def evaluate_held_out(
    program: Program,
    state: TrainState,
    data: Batches,
    *,
    seed: int,
    bytes_per_token: float,
) -> dict[str, float]:
    """Mean metrics on held-out batches: the same batches and corruption at every call.

    Args:
      program: the compiled functions.
      state: whose moving average is evaluated if there is one, else its parameters.
      data: held-out batches.
      seed: of the corruption.
      bytes_per_token: of the text of `data`, for objectives that score every token.
    """
    t, objective = program.training, program.objective
    params = averaged_params(state)
    mems = jax.tree.map(jnp.zeros_like, state.mems)
    key = jax.random.key(seed)
    sums = []
    for i in range(min(t.eval_batches, data.batches_per_epoch)):
        batch = global_batch(data.batch_at(i), program.mesh, t.batch_size)
        found, mems = program.evaluate(params, mems, jax.random.fold_in(key, i), batch)
        sums.append(found)
    means = means_of(jax.device_get(sums))
    if objective.scores_every_token:
        means["bits_per_byte"] = means[objective.headline] / math.log(2) / bytes_per_token
    return means


def averaged_params(state: TrainState) -> Any:
    """The moving average of the parameters if the state has one, else the parameters."""
    return state.params if state.ema is None else state.ema


def _initial_state(program: Program, seed: int, warm_start: WarmStart | None) -> TrainState:
    """The state before the first step."""
    state = program.initialize(np.uint32(seed % 2**32))
    if warm_start is None:
        return state
    params = warm_start(state.params)
    ema = None if state.ema is None else jax.tree.map(jnp.copy, params)
    return dataclasses.replace(state, params=params, ema=ema)


def _print_memory(program: Program, name: str) -> None:
    """Prints the layout and estimated memory, and where compiled programs are kept."""
    if jax.process_index() != 0:
        return
    console = wide_console(stderr=True)
    if program.mesh.devices.size > 1:
        console.print(layout(program.abstract_state, program.mesh))
    console.print(f"{name}: about {estimate_memory(program)}", highlight=False, soft_wrap=True)
    if kept := jax.config.values["jax_compilation_cache_dir"]:
        console.print(f"compiled programs are kept in {kept}", highlight=False, soft_wrap=True)


def _speed(program: Program, length: int) -> Speed:
    objective, devices = program.objective, program.mesh.devices
    flops = objective.forward_flops(length)
    dtype = getattr(getattr(objective.model, "trunk", None), "dtype", "float32")
    peak = peak_flops(devices.flat[0], dtype)
    return Speed(
        # A backward pass costs twice the forward pass.
        flops_per_step=None if flops is None else 3 * flops * program.training.batch_size,
        peak_flops=None if peak is None else peak * devices.size,
    )


@contextlib.contextmanager
def _loaders(
    plan: Plan, tokenizer: Tokenizer, stores: Mapping[str, TokenStore]
) -> Iterator[list[dict[str, Loader]]]:
    """The batches of each phase by split; closes them at the end."""
    vocabulary = plan.objective_for(tokenizer.vocabulary(stores["train"].counts)).vocabulary
    with contextlib.ExitStack() as stack:
        phases: list[dict[str, Loader]] = []
        for phase in plan.phases:
            phases.append({})
            for split, store in stores.items():
                phases[-1][split] = loader = Loader(
                    phase.examples,
                    store,
                    vocabulary,
                    batch_size=phase.training.batch_size,
                    seed=plan.seed,
                    split=split,
                    process_index=jax.process_index(),
                    process_count=jax.process_count(),
                    shuffle=split == "train",
                )
                stack.callback(loader.close)
        yield phases


def _run_phases(
    plan: Plan,
    tokenizer: Tokenizer,
    stores: Mapping[str, TokenStore],
    loaders: Sequence[Mapping[str, Loader]],
) -> list[RunPhase]:
    """The phases of the plan with their programs; traces shapes only.

    A phase continues to read at the point of the epoch where the phase before it ended.

    Raises:
      ConfigError: the phases do not train the same parameters.
    """
    vocabulary = tokenizer.vocabulary(stores["train"].counts)
    held_out = stores["validation"]
    epochs = fractions.Fraction(0)
    phases: list[RunPhase] = []
    for phase, data in zip(plan.phases, loaders, strict=True):
        objective = plan.objective_for(vocabulary, phase)
        row = {key: array[0] for key, array in data["train"].batch_at(0).items()}
        start, steps = phase.schedule

        def make(
            config: OptimizerConfig, _: int, shapes: Any, start: int = start, steps: int = steps
        ) -> Any:
            return make_optimizer(config, steps, shapes, start)

        program = Program(objective, row, phase.training, phase.optimizer, plan.mesh, make)
        if phases and (odd := _different_shapes(phases[0].program, program)):
            raise ConfigError(
                f"config.phases.{phase.name}: does not train the same parameters as the first"
                f" phase, which has another or no {odd}; use objectives of one network"
            )

        def evaluate(state: TrainState, program: Program = program, data: Any = data) -> Any:
            return evaluate_held_out(
                program,
                state,
                data["validation"],
                seed=plan.seed,
                bytes_per_token=held_out.bytes / len(held_out.tokens),
            )

        phases.append(
            RunPhase(
                program=program,
                data=data["train"],
                evaluate=evaluate,
                length=phase.examples.length,
                start=phase.start,
                end=phase.end,
                first_batch=int(epochs * data["train"].batches_per_epoch),
                name=phase.name,
                evaluators=plan.evaluators_for(objective, tokenizer),
            )
        )
        per_epoch = data["train"].batches_per_epoch
        epochs += fractions.Fraction(phase.end - phase.start, per_epoch)
    return phases


def _different_shapes(one: Program, other: Program) -> str:
    """The first parameter that the programs do not share, or ''."""
    shapes = [
        dict(
            zip(
                program.param_names,
                (x.shape for x in jax.tree.leaves(program.abstract_state.params)),
                strict=True,
            )
        )
        for program in (one, other)
    ]
    differing = [k for k in {**shapes[0], **shapes[1]} if shapes[0].get(k) != shapes[1].get(k)]
    return differing[0] if differing else ""
