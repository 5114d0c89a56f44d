"""A fine-tuning config, read and checked; its data and its start, prepared once for all seeds."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections

from lmjax.configuration import build, build_typed, check_fields, resolve_type, whole_number
from lmjax.data.rows import (
    SPLITS,
    BadRowError,
    Notes,
    Row,
    RowsConfig,
    draw,
    place_of,
    read_split,
    settle,
)
from lmjax.errors import ConfigError
from lmjax.tasks.base import Example, Scores, Task
from lmjax.tasks.starting import Start, start_from, start_random
from lmjax.training.mesh import MeshConfig, check_batch, make_mesh
from lmjax.training.optimizers import OptimizerConfig
from lmjax.training.plan import TrainingConfig

FIELDS = (
    "seed",
    "seeds",
    "init",
    "compare_scratch",
    "dropout",
    "task",
    "data",
    "optimizer",
    "training",
    "mesh",
    "model",
    "tokenizer",
)
_PLAIN = ("seed", "seeds", "init", "compare_scratch", "dropout")  # the others are blocks
# What a continued run may change.
MAY_CHANGE = (
    "seeds",
    "compare_scratch",
    "training.log_every",
    "mesh.data",
    "mesh.fsdp",
    "mesh.sequence",
    "mesh.tensor",
    "data.cache_dir",
)


@dataclasses.dataclass(frozen=True)
class FinetuningConfig:
    """How long to train.

    Attributes:
      epochs: passes over the training rows; held-out rows are scored, and a checkpoint is
        saved, after each.
      batch_size: examples of an update, over all devices.
      accumulation: micro-batches of an update.
      warmup_ratio: share of the steps in which the learning rate rises; where 0,
        config.optimizer.warmup_steps says how many.
      log_every: in steps.
    """

    epochs: int
    batch_size: int
    accumulation: int = 1
    warmup_ratio: float = 0.1
    log_every: int = 20

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulation", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.warmup_ratio < 1:
            raise ConfigError(f"warmup_ratio: must lie in [0, 1), got {self.warmup_ratio}")

    def of_steps(
        self, steps_per_epoch: int, optimizer: OptimizerConfig
    ) -> tuple[TrainingConfig, OptimizerConfig]:
        """The same counted in steps, the warmup of the optimizer too."""
        training = TrainingConfig(
            steps=self.epochs * steps_per_epoch,
            batch_size=self.batch_size,
            accumulation=self.accumulation,
            log_every=self.log_every,
            eval_every=steps_per_epoch,
            checkpoint_every=steps_per_epoch,
            max_loss_rise=0.0,  # a regression or an uneven batch may well double it
        )
        if self.warmup_ratio:
            warmup = round(self.warmup_ratio * training.steps)
            optimizer = dataclasses.replace(optimizer, warmup_steps=warmup)
        return training, optimizer


@dataclasses.dataclass(frozen=True)
class Prepared:
    """All that the seeds of a run share.

    Attributes:
      start: the pretrained encoder, or a random one.
      rows, examples: of the splits train, validation and test; [] where there is none.
      scored: the split that the reported score is of.
      notes: what was skipped, cut or split.
      baselines: scores of simple rules on the rows of `scored`.
    """

    task: Task
    start: Start
    optimizer: OptimizerConfig
    training: FinetuningConfig
    mesh: jax.sharding.Mesh
    rows: Mapping[str, list[Row]]
    examples: Mapping[str, list[Example]]
    scored: str
    notes: Mapping[str, Notes]
    baselines: Mapping[str, Scores]


def prepare(config: ml_collections.ConfigDict, start: Start | None = None) -> Prepared:
    """Reads the config, the data and the start; compiles and writes nothing.

    Args:
      start: what `config.init` names, where it is open already.

    Raises:
      ConfigError: a field, a file or a row that cannot work.
    """
    values = config.to_dict()
    _check_fields(values)
    data = build(RowsConfig, values["data"], "config.data")
    optimizer = build(OptimizerConfig, values["optimizer"], "config.optimizer")
    training = build(FinetuningConfig, values["training"], "config.training")
    if training.warmup_ratio and optimizer.warmup_steps:
        raise ConfigError(
            f"config.optimizer.warmup_steps: {optimizer.warmup_steps}, and"
            f" config.training.warmup_ratio is {training.warmup_ratio}; set one of them to 0"
        )
    mesh = make_mesh(build(MeshConfig, values["mesh"], "config.mesh"))
    cls = resolve_type(values["task"], "config.task")
    if not issubclass(cls, Task):
        raise ConfigError(f"config.task.type: '{values['task']['type']}' is no lmjax.tasks Task")
    dropout = values["dropout"]
    # A stand-in start lets the task read rows, which a random start's tokenizer is trained on.
    if start is None and values["init"]:
        start = start_from(values["init"], dropout).with_tokens(cls.added_tokens)
    vocabulary = None if start is None else start.vocabulary
    model = None if start is None else start.model
    task: Task = build_typed(
        values["task"], "config.task", vocabulary=vocabulary, model=model or _unknown(values)
    )
    if task.compares_rows and training.accumulation > 1:
        raise ConfigError(
            f"config.training.accumulation: {training.accumulation} micro-batches would leave a row"
            f" with {training.accumulation} times fewer others to be told from; set it to 1"
        )
    check_batch(training.batch_size, task.length, training.accumulation, mesh)

    notes = {split: Notes() for split in SPLITS}
    rows = {
        split: read_split(data, split, task.parse, task.embedded, notes[split]) for split in SPLITS
    }
    task = task.bind(rows["train"])  # all of them: few may lack a class
    rows["train"] = draw(rows["train"], data.train_rows, values["seed"])
    for split in SPLITS:
        rows[split] = _checked(task, rows[split], split, data, notes[split])
    if start is None:
        texts = (text for row in rows["train"] for text in task.texts(row))
        start = start_random(values["model"], values["tokenizer"], texts, dropout)
        start = start.with_tokens(task.added_tokens)
        task = dataclasses.replace(task, vocabulary=start.vocabulary, model=start.model)
    examples = {
        split: task.encode(rows[split], start.tokenizer, notes[split], split == "train")
        for split in SPLITS
    }
    scored = "test" if rows["test"] else "validation"
    return Prepared(
        task=task,
        start=start,
        optimizer=optimizer,
        training=training,
        mesh=mesh,
        rows=rows,
        examples=examples,
        scored=scored,
        notes=notes,
        baselines=task.baselines(rows["train"], rows[scored]),
    )


def _unknown(values: Mapping[str, Any]) -> Any:
    """The model of a random start before its vocabulary is known."""
    return build_typed(values["model"], "config.model")


def _checked(
    task: Task, rows: Sequence[Row], split: str, data: RowsConfig, notes: Notes
) -> list[Row]:
    good, bad = [], []
    for row in rows:
        try:
            task.check(row)
            good.append(row)
        except BadRowError as error:
            bad.append((place_of(error, row["where"]), str(error)))
    settle(bad, data.on_bad_rows, f"config.data.{split}", len(rows), notes)
    if rows and not good:
        raise ConfigError(
            f"config.data.{split}: none of the {len(rows)} rows fits the training rows:"
            f" {bad[0][0]}: {bad[0][1]}"
        )
    return good


def _check_fields(values: Mapping[str, Any]) -> None:
    check_fields(values, FIELDS, plain=_PLAIN)
    for name, least in (("seed", 0), ("seeds", 1)):
        whole_number(values, name, least)
    if not isinstance(values["compare_scratch"], bool):
        raise ConfigError(
            f"config.compare_scratch: expected bool, got {values['compare_scratch']!r}"
        )
    if not isinstance(values["init"], str):
        raise ConfigError(f"config.init: expected a path or '', got {values['init']!r}")
    dropout = values["dropout"]
    if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise ConfigError(f"config.dropout: must lie in [0, 1), got {dropout!r}")
