"""The run: from a config and a directory to trained parameters."""

import dataclasses
import math
import pathlib
import time
from typing import Any

import jax
import ml_collections
import numpy as np
import rich.console

from lmjax.data.loader import Loader
from lmjax.data.store import TokenStore, check_data, prepare
from lmjax.data.tokenizers import Tokenizer
from lmjax.objectives.base import Objective
from lmjax.training.checkpoints import Checkpoints
from lmjax.training.devices import peak_flops
from lmjax.training.distributed import noticing_lost_processes
from lmjax.training.mesh import batch_sharding, global_batch, replicated
from lmjax.training.optimizers import make_optimizer
from lmjax.training.plan import MAY_CHANGE, Plan, make_plan
from lmjax.training.preemption import PreemptedError, Preemption
from lmjax.training.reporting import MetricsWriter, RunDirectory, TrainingProgress, read_metrics
from lmjax.training.sharding import layout, shardings
from lmjax.training.state import TrainState, init_state
from lmjax.training.step import Metrics, make_eval_step, make_train_step


class DivergedError(RuntimeError):
    """Training left the numbers: the message says where; the last good checkpoint stays."""


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


def pretrain(config: ml_collections.ConfigDict, workdir: str | pathlib.Path, name: str) -> Result:
    """Trains, or continues, the run of `config` in `workdir`.

    Args:
      name: shown beside the progress bar.

    Raises:
      ConfigError: before anything is compiled or written, for what cannot work.
      DivergedError: the loss is not finite or rises; nothing after it is saved.
      PreemptedError: SIGTERM came; the run is saved at the step it had reached.
      LostProcessError: another process of the run is gone.
    """
    plan = make_plan(config)
    check_data(plan.data)
    directory = RunDirectory(workdir, config, MAY_CHANGE)
    tokenizer, stores = prepare(plan.data, ("train", "validation"))
    if jax.process_index() == 0:
        tokenizer.save(directory.path / "tokenizer.json")
    vocabulary = tokenizer.vocabulary(stores["train"].counts)
    objective = plan.objective_for(vocabulary)
    loaders = {
        split: Loader(
            plan.examples,
            stores[split],
            vocabulary,
            batch_size=plan.training.batch_size,
            seed=plan.seed,
            split=split,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            shuffle=split == "train",
        )
        for split in ("train", "validation")
    }
    try:
        with jax.set_mesh(plan.mesh), noticing_lost_processes():
            run = _Run(plan, objective, directory, loaders, stores["validation"])
            state = run.train(name)
    finally:
        for loader in loaders.values():
            loader.close()
    params = state.params if state.ema is None else state.ema
    return Result(
        objective=objective,
        params=params,
        tokenizer=tokenizer,
        batch=loaders["validation"].batch_at(0),
        mems=objective.init_mems(plan.training.batch_size),
        records=read_metrics(directory.path),
        parameters=sum(leaf.size for leaf in jax.tree.leaves(params)),
    )


class _Run:
    """One run's compiled functions and its bookkeeping; `train` is the loop."""

    def __init__(
        self,
        plan: Plan,
        objective: Objective,
        directory: RunDirectory,
        loaders: dict[str, Loader],
        held_out: TokenStore,
    ):
        self.plan, self.training = plan, plan.training
        self.objective, self.directory = objective, directory
        self.train_data, self.held_out_data = loaders["train"], loaders["validation"]
        self.held_out_bytes_per_token = held_out.bytes / len(held_out.tokens)

        mesh, training = plan.mesh, plan.training
        example = global_batch(self.train_data.batch_at(0), mesh, training.batch_size)
        shapes = jax.eval_shape(
            lambda: objective.init(
                jax.random.key(0),
                jax.vmap(objective.corrupt)(
                    jax.random.split(jax.random.key(0), training.batch_size), example
                ),
            )
        )
        self.optimizer, self.schedule = make_optimizer(plan.optimizer, training.steps, shapes)
        self.paths = [
            jax.tree_util.keystr(path, simple=True, separator="/")
            for path, _ in jax.tree_util.tree_leaves_with_path(shapes)
        ]

        def initial() -> TrainState:
            ema = training.ema_decay > 0
            return init_state(objective, self.optimizer, plan.seed, example, ema)

        abstract = jax.eval_shape(initial)
        whole, rows = replicated(mesh), batch_sharding(mesh)
        self.shardings = shardings(abstract, mesh)
        if mesh.devices.size > 1 and jax.process_index() == 0:
            rich.console.Console(stderr=True).print(layout(abstract, mesh))
        self.abstract = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            abstract,
            self.shardings,
        )
        self.initial = jax.jit(initial, out_shardings=self.shardings)
        self.step = jax.jit(
            make_train_step(objective, self.optimizer, training.accumulation, training.ema_decay),
            in_shardings=(self.shardings, rows),
            out_shardings=(self.shardings, whole),
            donate_argnums=0,
        )
        self.evaluate_batch = jax.jit(
            make_eval_step(objective),
            in_shardings=(self.shardings.params, self.shardings.mems, whole, rows),
            out_shardings=(whole, self.shardings.mems),
        )
        flops = objective.forward_flops(plan.examples.length)
        # A backward pass costs twice the forward pass.
        self.flops_per_step = None if flops is None else 3 * flops * training.batch_size
        dtype = getattr(getattr(objective.model, "trunk", None), "dtype", "float32")
        peak = peak_flops(mesh.devices.flat[0], dtype)
        self.peak_flops = None if peak is None else peak * mesh.devices.size

    def train(self, name: str) -> TrainState:
        """Runs to the last step; continues where the latest checkpoint ends."""
        t = self.training
        with Checkpoints(self.directory.checkpoints, t.checkpoints_to_keep) as checkpoints:
            if checkpoints.latest_step() is None:
                state, done = self.initial(), 0
            else:
                state, data_state = checkpoints.restore(None, self.abstract)
                self.train_data.set_state(data_state)
                done = int(state.step)
            if done >= t.steps:
                return state
            with (
                MetricsWriter(self.directory.path, done) as writer,
                TrainingProgress(t.steps, name, done) as progress,
                Preemption() as preemption,
            ):
                watch = _Watch(self, writer, progress, checkpoints)
                if done == 0:
                    writer.write(0, self.evaluate(state), "validation")
                watch.restart()
                for step in range(done + 1, t.steps + 1):
                    batch = global_batch(next(self.train_data), self.plan.mesh, t.batch_size)
                    state, metrics = self.step(state, batch)
                    watch.add(step, metrics)
                    last = step == t.steps
                    evaluate = last or _due(step, t.eval_every)
                    stop = not last and preemption.requested(step)
                    save = last or stop or _due(step, t.checkpoint_every)
                    if evaluate or save:
                        watch.flush()  # nothing is saved before its numbers are looked at
                    if evaluate:
                        writer.write(step, self.evaluate(state), "validation")
                    if save:
                        checkpoints.save(step, state, self.train_data.get_state())
                    if stop:
                        checkpoints.wait()
                        raise PreemptedError(
                            f"step {step}: told to stop (SIGTERM); saved in {self.directory.path},"
                            " the same command continues"
                        )
                    if evaluate or save:
                        watch.restart()
        return state

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Means over the same held-out batches, with the same corruption, every time."""
        t = self.training
        params = state.params if state.ema is None else state.ema
        batches = min(t.eval_batches, self.held_out_data.batches_per_epoch)
        mems = jax.tree.map(lambda leaf: jax.numpy.zeros_like(leaf), state.mems)
        key = jax.random.key(self.plan.seed)
        sums = []
        for i in range(batches):
            batch = global_batch(self.held_out_data.batch_at(i), self.plan.mesh, t.batch_size)
            found, mems = self.evaluate_batch(params, mems, jax.random.fold_in(key, i), batch)
            sums.append(found)
        means = _means(jax.device_get(sums))
        if self.objective.scores_every_token:
            nats = means[self.objective.headline]
            means["bits_per_byte"] = nats / math.log(2) / self.held_out_bytes_per_token
        return means


class _Watch:
    """Looks at the numbers of past steps: logs them, and stops a run that has gone wrong.

    Device values are fetched one interval late, so that the device never waits for it.
    """

    def __init__(
        self, run: _Run, writer: MetricsWriter, progress: TrainingProgress, checkpoints: Checkpoints
    ):
        self.run, self.writer, self.progress = run, writer, progress
        self.checkpoints = checkpoints
        self.earlier: list[tuple[int, Metrics]] = []
        self.current: list[tuple[int, Metrics]] = []
        self.lowest = math.inf
        self.since = time.perf_counter()

    def restart(self) -> None:
        """Sets the clock, after work that is not training."""
        self.since = time.perf_counter()

    def add(self, step: int, metrics: Metrics) -> None:
        self.current.append((step, metrics))
        if _due(step, self.run.training.log_every):
            self._report(self.earlier)
            self.earlier, self.current = self.current, []

    def flush(self) -> None:
        """Looks at everything up to now."""
        self._report(self.earlier)
        self._report(self.current)
        self.earlier, self.current = [], []

    def _report(self, interval: list[tuple[int, Metrics]]) -> None:
        if not interval:
            return
        steps = [step for step, _ in interval]
        fetched = jax.device_get([metrics for _, metrics in interval])
        seconds = time.perf_counter() - self.since
        self.since = time.perf_counter()
        for step, metrics in zip(steps, fetched, strict=True):
            self._check_finite(step, metrics)
        loss = float(np.mean([m["loss"] for m in fetched]))
        self._check_rise(steps[-1], loss)
        rates = self._rates(fetched, seconds)
        norms = np.array([m["gradient_norms"] for m in fetched], np.float64)
        values = {
            "loss": loss,
            **_means([{**m["terms"], **m["metrics"]} for m in fetched]),
            "gradient_norm": float(np.sqrt(np.square(norms).sum(1)).mean()),
            "learning_rate": float(self.run.schedule(steps[-1] - 1)),
            **rates,
        }
        self.writer.write(steps[-1], values, "train")
        self.progress.update(steps[-1], loss, rates["tokens_per_second"])

    def _rates(self, fetched: list[Metrics], seconds: float) -> dict[str, float]:
        tokens = float(sum(m["tokens"] for m in fetched))
        rates = {"tokens": tokens, "tokens_per_second": tokens / seconds}
        if self.run.flops_per_step is not None:
            rates["flops_per_second"] = self.run.flops_per_step * len(fetched) / seconds
            if self.run.peak_flops is not None:
                rates["mfu"] = rates["flops_per_second"] / self.run.peak_flops
        return rates

    def _check_finite(self, step: int, metrics: Metrics) -> None:
        bad_terms = [k for k, (total, _) in metrics["terms"].items() if not np.isfinite(total)]
        bad = [
            path
            for path, norm in zip(self.run.paths, metrics["gradient_norms"], strict=True)
            if not np.isfinite(norm)
        ]
        if not bad_terms and not bad and np.isfinite(metrics["loss"]):
            return
        what = (
            f"the loss term '{bad_terms[0]}' is {metrics['terms'][bad_terms[0]][0]}"
            if (bad_terms)
            else f"the loss is {metrics['loss']}"
        )
        where = (
            f"; the gradient is not finite in {len(bad)} of {len(self.run.paths)} tensors,"
            f" first in {bad[0]}"
            if bad
            else ""
        )
        raise DivergedError(f"step {step}: {what}{where}. {self._advice()}")

    def _check_rise(self, step: int, loss: float) -> None:
        limit = self.run.training.max_loss_rise
        if limit and loss > limit * self.lowest:
            raise DivergedError(
                f"step {step}: the mean loss rose to {loss:.4g}, more than"
                f" config.training.max_loss_rise={limit:g} times the lowest so far,"
                f" {self.lowest:.4g}. {self._advice()}"
            )
        self.lowest = min(self.lowest, loss)

    def _advice(self) -> str:
        good = self.checkpoints.latest_step()
        kept = (
            "No checkpoint was saved before it."
            if good is None
            else f"The last good checkpoint is that of step {good} in {self.run.directory.path}."
        )
        return f"{kept} A lower config.optimizer.learning_rate or a longer warmup may help."


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _means(sums: list[dict[str, tuple[Any, Any]]]) -> dict[str, float]:
    """Sums over all divided by counts over all; what never counted is left out."""
    totals: dict[str, float] = {}
    for name in sums[0]:
        total = sum(float(s[name][0]) for s in sums)
        count = sum(float(s[name][1]) for s in sums)
        if count > 0:
            totals[name] = total / count
    return totals
