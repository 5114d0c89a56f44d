"""Multi-task fine-tuning: one encoder, a head per task (MT-DNN; Liu et al. 2019, algorithm 1)."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from lmjax.configuration import build, resolve_type
from lmjax.convert.runs import own_parameters
from lmjax.data.loader import Position
from lmjax.data.rows import Row
from lmjax.errors import ConfigError
from lmjax.nn.dropout import Seeds
from lmjax.objectives.base import Batch, Objective, Scored
from lmjax.tasks.base import Task
from lmjax.tasks.collate import Collator, Epochs
from lmjax.tasks.finetuning import Result, save_model, score_sets, write_results
from lmjax.tasks.initialization import put_in, start_from
from lmjax.tasks.plan import MultitaskConfig, Prepared, prepare
from lmjax.tasks.predictor import Predictor
from lmjax.training.loop import RunPhase, train
from lmjax.training.memory_estimate import check_model_fits
from lmjax.training.multihost import detect_lost_processes
from lmjax.training.optimizers import OptimizerConfig, Schedule, make_optimizer
from lmjax.training.run_directory import OnMetrics, RunDirectory
from lmjax.training.step import Program, TrainState
from lmjax.trees import map_named

_OF = "of:"  # a batch names its task by an array called 'of:<task>'


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Joint(Objective):
    """Computes the loss of the task that a batch belongs to.

    Parameters are {'encoder', 'heads': {task: its head}}.

    Attributes:
      tasks: tasks by name.
      examples: a batch of each task.
    """

    tasks: Mapping[str, Task]
    examples: Mapping[str, Any]

    @property
    def weights(self) -> dict[str, float]:
        return {
            f"{name}/{term}": weight
            for name, task in self.tasks.items()
            for term, weight in task.weights.items()
        }

    def init(self, key: jax.Array, batch: Batch) -> Any:
        del batch
        made = {
            name: task.init(jax.random.fold_in(key, i), self.examples[name])
            for i, (name, task) in enumerate(self.tasks.items())
        }
        heads = {name: params["head"] for name, params in made.items() if "head" in params}
        return {"encoder": next(iter(made.values()))["encoder"], "heads": heads}

    def loss(self, params: Any, batch: Batch, mems: Any, seeds: Seeds | None) -> Scored:
        (name,) = (key.removeprefix(_OF) for key in batch if key.startswith(_OF))
        own = {key: array for key, array in batch.items() if not key.startswith(_OF)}
        scored = self.tasks[name].loss(own_parameters(params, name), own, mems, seeds)
        # Every step reports metrics of all tasks; those of other tasks have weight 0.
        terms, metrics = self._nothing()
        terms |= {f"{name}/{term}": found for term, found in scored.terms.items()}
        metrics |= {f"{name}/{metric}": found for metric, found in scored.metrics.items()}
        return Scored(terms, metrics)

    def _nothing(self) -> tuple[dict[str, Any], dict[str, Any]]:
        terms: dict[str, Any] = {}
        metrics: dict[str, Any] = {}
        for name, task in self.tasks.items():
            batch = self.examples[name]

            def trial(task: Task = task, batch: Any = batch) -> Scored:
                return task.loss(task.init(jax.random.key(0), batch), batch, None, None)

            scored = jax.eval_shape(trial)
            terms |= {f"{name}/{term}": (jnp.zeros(()), jnp.zeros(())) for term in scored.terms}
            metrics |= {f"{name}/{m}": (jnp.zeros(()), jnp.zeros(())) for m in scored.metrics}
        return terms, metrics


class Mixture(Epochs):
    """Samples a task for each batch; batch i is a function of (seed, i).

    A task with n examples is sampled in proportion to n^(1 / temperature): 1 samples by size, a
    large temperature uniformly (Raffel et al. 2020, §3.5.2). Each task has its own epochs.
    """

    def __init__(self, tasks: Mapping[str, Epochs], temperature: float, seed: int):
        Position.__init__(self)
        self._tasks, self._seed = tasks, seed
        sizes = np.array([epochs.size for epochs in tasks.values()])
        shares = (sizes / sizes.max()) ** (1 / temperature)  # relative sizes avoid overflow
        self.shares = shares / shares.sum()
        self._drawn = np.zeros(0, int)

    @property
    def batches_per_epoch(self) -> int:
        """The sum over all tasks."""
        return sum(epochs.batches_per_epoch for epochs in self._tasks.values())

    def batch_at(self, index: int) -> dict[str, np.ndarray]:
        block = 1024  # tasks sampled at a time
        while len(self._drawn) <= index:
            rng = np.random.default_rng([self._seed, len(self._drawn) // block])
            more = rng.choice(len(self._tasks), block, p=self.shares)
            self._drawn = np.concatenate([self._drawn, more])
        which = self._drawn[index]
        name, epochs = list(self._tasks.items())[which]
        before = int((self._drawn[:index] == which).sum())
        batch = epochs.batch_at(before)
        return {**batch, f"{_OF}{name}": np.zeros(len(batch["weight"]), np.int32)}


def prepare_several(config: ml_collections.ConfigDict) -> dict[str, Prepared]:
    """Prepares each task of config.tasks = {name: {'task', 'data'}} with the shared fields.

    Raises:
      ConfigError: a field, a file or a row is invalid.
    """
    own = build(MultitaskConfig, config, "config")
    if len(own.tasks) < 2:
        raise ConfigError("config.tasks: give at least two blocks NAME: {'task', 'data'}")
    if not own.init:
        raise ConfigError("config.init: empty; several tasks share a pretrained encoder")
    if own.seeds != 1 or own.compare_scratch:
        raise ConfigError(
            "config.seeds: multi-task runs support neither several seeds nor compare_scratch;"
            " unset both"
        )
    tokens: dict[str, None] = {}
    for name, one in own.tasks.items():
        if "/" in name:
            raise ConfigError(f"config.tasks.{name}: the name becomes a directory; remove the '/'")
        cls = resolve_type(one.task, f"config.tasks.{name}.task", Task)
        tokens |= dict.fromkeys(getattr(cls, "added_tokens", ()))
    start = start_from(own.init, own.dropout).with_tokens(tuple(tokens))
    rest = config.to_dict()
    tasks = rest.pop("tasks")
    rest.pop("temperature", None)
    found = {}
    for name, block in tasks.items():
        try:
            found[name] = prepare(ml_collections.ConfigDict({**rest, **block}), start)
        except ConfigError as error:
            message = str(error)
            for field in ("task", "data"):
                message = message.replace(f"config.{field}", f"config.tasks.{name}.{field}")
            raise ConfigError(message) from error
        task = found[name].task
        if task.freeze or task.adapter.rank:
            raise ConfigError(
                f"config.tasks.{name}.task: multi-task runs train a shared trunk; unset freeze and"
                " adapter"
            )
    return found


def finetune_several(
    prepared: Mapping[str, Prepared],
    config: ml_collections.ConfigDict,
    workdir: str | pathlib.Path,
    on_metrics: OnMetrics | None = None,
) -> dict[str, Result]:
    """Fine-tunes on several tasks, or resumes the run in `workdir`.

    Writes a directory for each task with predictions.jsonl, report.md and results.json.
    `lmjax.load` opens the directory; `transformers` opens its subdirectory model/, which contains
    only the encoder if `transformers` lacks the task's head.

    Args:
      config: the config that `prepared` was created from.
      on_metrics: as in `lmjax.training.loop.pretrain`.

    Raises:
      ConfigError, DivergedError, PreemptedError: as `lmjax.training.loop.pretrain`.
    """
    if jax.process_count() > 1:
        raise ConfigError("--processes: fine-tuning runs in one process, on all of its devices")
    first = next(iter(prepared.values()))
    own = build(MultitaskConfig, config, "config")
    directory = RunDirectory(workdir, config, MultitaskConfig)
    check_model_fits(first.task.model, first.mesh)
    results = {}
    with directory.locked(), jax.set_mesh(first.mesh), detect_lost_processes():
        size, sequence = first.training.batch_size, first.mesh.shape["sequence"]
        collate = {name: Collator(one.task, size, sequence) for name, one in prepared.items()}
        epochs = {
            name: Epochs(one.examples["train"], collate[name], own.seed)
            for name, one in prepared.items()
        }
        data = Mixture(epochs, own.temperature, own.seed)
        training, optimizer = first.training.of_steps(data.batches_per_epoch, first.optimizer)
        joint = Joint(
            vocabulary=first.task.vocabulary,
            model=first.task.model,
            tasks={name: one.task for name, one in prepared.items()},
            examples={name: one.batch_at(0) for name, one in epochs.items()},
        )
        row = {key: array[0] for key, array in data.batch_at(0).items()}
        program = Program(joint, row, training, optimizer, first.mesh, make_joint_optimizer)
        predictors = {
            name: Predictor(
                one.task,
                collate[name],
                first.mesh,
                program.shardings.params,
                one.start.tokenizer,
                functools.partial(own_parameters, name=name),
            )
            for name, one in prepared.items()
        }

        def predict(
            params: Any, name: str, split: str, task: Task | None = None
        ) -> tuple[list[Row], dict[str, float]]:
            """Predictions for all rows of a task's split, and the mean loss and metrics."""
            rows, examples = prepared[name].rows[split], prepared[name].examples[split]
            return predictors[name].predict(params, rows, examples, task)

        def evaluate(state: TrainState) -> dict[str, float]:
            found = {}
            for name, one in prepared.items():
                predictions, means = predict(state.params, name, "validation")
                for key, value in (means | one.task.scores(predictions)).items():
                    found[f"{name}/{key}"] = value
            return found

        directory.claim(first.start.tokenizer)
        length = max(one.task.length for one in prepared.values())
        phase = RunPhase(program, data, evaluate, length, end=training.steps)
        state = train(
            [phase],
            directory,
            name="several tasks",
            seed=own.seed,
            warm_start=functools.partial(put_in_all, prepared),
            on_metrics=on_metrics,
        )
        for name, one in prepared.items():
            params, place = own_parameters(state.params, name), directory.path / name

            def predict_split(split: str, task: Task, name: str = name) -> list[Row]:
                return predict(state.params, name, split, task)[0]

            task, sets, chosen = score_sets(one, predict_split)
            place.mkdir(exist_ok=True)
            why = save_model(one, task, one.start.tokenizer, params, place)
            count = sum(leaf.size for leaf in jax.tree.leaves(params))
            results[name] = Result(task, sets, chosen, count, count, why)
            write_results(one, results[name], place)
    return results


def make_joint_optimizer(
    config: OptimizerConfig, steps: int, shapes: Any
) -> tuple[optax.GradientTransformation, Schedule]:
    """Wraps `make_optimizer` with `resting_heads`."""
    inner, schedule = make_optimizer(config, steps, shapes)
    return resting_heads(inner), schedule


def put_in_all(prepared: Mapping[str, Prepared], fresh: Any) -> Any:
    """Replaces random parameters with the pretrained encoder and the initial heads of all tasks."""
    encoder, heads = fresh["encoder"], {}
    for name, one in prepared.items():
        merged = put_in(own_parameters(fresh, name), one.start)
        encoder = merged["encoder"]
        if "head" in merged:
            heads[name] = merged["head"]
    return {"encoder": encoder, "heads": heads}


def resting_heads(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Wraps `inner` so that heads without any gradient keep their parameters and moments.

    Otherwise momentum and weight decay would move the heads of tasks that are not in the batch.
    """

    def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        active = {
            name: jnp.any(jnp.stack([jnp.any(g != 0) for g in jax.tree.leaves(head)]))
            for name, head in gradients["heads"].items()
        }

        def chosen(names: tuple[str, ...], new: jax.Array, old: Any) -> jax.Array:
            if "heads" not in names:
                return new
            return jnp.where(active[names[names.index("heads") + 1]], new, old)

        updates, new_state = inner.update(gradients, state, params)
        still = jax.tree.map(jnp.zeros_like, updates)
        updates = map_named(chosen, updates, still)
        return updates, map_named(chosen, new_state, state)

    return optax.GradientTransformation(inner.init, update)
