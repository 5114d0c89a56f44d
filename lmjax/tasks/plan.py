"""Fine-tuning configs, and the data and initial model that all seeds of a run share."""

import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import jax
import ml_collections

from lmjax.configuration import (
    Block,
    Interval,
    PositiveInt,
    Rate,
    Seed,
    build,
    build_typed,
    check_ranges,
    resolve_type,
)
from lmjax.convert.runs import check_saved
from lmjax.data.rows import BadRowError, Notes, Row, RowsConfig, draw, place_of, read_split, settle
from lmjax.data.tokenizers import TokenizerConfig
from lmjax.errors import ConfigError
from lmjax.models.family import ModelConfig
from lmjax.tasks.base import Example, Scores, Task
from lmjax.tasks.initialization import Start, start_from, start_random
from lmjax.training.optimizers import OptimizerConfig
from lmjax.training.plan import TrainingConfig
from lmjax.training.sharding import MeshConfig, check_batch, make_mesh

_NAME = r"\w[\w-]*"
_NAMED_SETS = re.compile(rf"{_NAME}=[^,]+(,{_NAME}=[^,]+)*")


@dataclasses.dataclass(frozen=True)
class FinetuningConfig:
    """Length of training.

    Attributes:
      epochs: passes over the training rows. Each epoch ends with an evaluation and a checkpoint.
      batch_size: examples per update, over all devices.
      accumulation: micro-batches per update.
      warmup_ratio: share of the steps that the learning-rate warmup takes; 0 uses
        config.optimizer.warmup_steps.
      log_every: logging interval in steps.
    """

    epochs: PositiveInt
    batch_size: PositiveInt
    accumulation: PositiveInt = 1
    warmup_ratio: Rate = 0.1
    log_every: PositiveInt = 20

    def __post_init__(self) -> None:
        check_ranges(self)

    def of_steps(
        self, steps_per_epoch: int, optimizer: OptimizerConfig
    ) -> tuple[TrainingConfig, OptimizerConfig]:
        """Converts epochs and the warmup ratio to steps."""
        training = TrainingConfig(
            steps=self.epochs * steps_per_epoch,
            batch_size=self.batch_size,
            accumulation=self.accumulation,
            log_every=self.log_every,
            eval_every=steps_per_epoch,
            checkpoint_every=steps_per_epoch,
            max_loss_rise=0.0,  # a regression or an uneven batch may double the loss
        )
        if self.warmup_ratio:
            warmup = round(self.warmup_ratio * training.steps)
            optimizer = dataclasses.replace(optimizer, warmup_steps=warmup)
        return training, optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class SharedConfig:
    """Common fields of the single-task and multi-task fine-tuning configs.

    Attributes:
      seed: seed of all random numbers.
      seeds: number of seeds to train.
      init: the initial checkpoint; '' starts from a random encoder of `model` and a tokenizer
        trained on the rows.
      compare_scratch: also train a random encoder, for comparison.
      dropout: dropout rate of the encoder.
      model, tokenizer: configs of a random encoder and its tokenizer.
    """

    # Fields that may change when a run is resumed.
    MAY_CHANGE: ClassVar[tuple[str, ...]] = (
        "seeds",
        "compare_scratch",
        "training.log_every",
        "mesh.data",
        "mesh.fsdp",
        "mesh.sequence",
        "mesh.tensor",
        "data.cache_dir",
    )

    seed: Seed = 0
    seeds: PositiveInt = 1
    init: str = ""
    compare_scratch: bool = False
    dropout: Rate = 0.1
    optimizer: OptimizerConfig
    training: FinetuningConfig
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    model: Annotated[ModelConfig, Block(ModelConfig)]
    tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)


_TASK = Block(Task, given=("model", "vocabulary"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneConfig(SharedConfig):
    """The config of a fine-tuning run.

    Attributes:
      task: `type`, an import path, and the fields of that dataclass.
      data: the task's rows.
    """

    task: Annotated[Mapping[str, Any], _TASK]
    data: RowsConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """One task of several."""

    task: Annotated[Mapping[str, Any], _TASK]
    data: RowsConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultitaskConfig(SharedConfig):
    """The config of multi-task fine-tuning.

    Attributes:
      tasks: tasks by name.
      temperature: a task with n examples is sampled in proportion to n^(1 / temperature).
    """

    tasks: Mapping[str, TaskConfig]
    temperature: Annotated[float, Interval("(0, inf)")] = 2.0


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Everything that the seeds of a run share.

    Attributes:
      start: the pretrained or random encoder.
      rows, examples: by split: 'train', 'validation' and each test set.
      scored: the splits with reported scores: the test sets, or 'validation' if there are none.
      notes: what was skipped, truncated or split, by split.
      baselines: baseline scores of each split in `scored`.
    """

    task: Task
    start: Start
    optimizer: OptimizerConfig
    training: FinetuningConfig
    mesh: jax.sharding.Mesh
    data: RowsConfig
    rows: Mapping[str, list[Row]]
    examples: Mapping[str, list[Example]]
    scored: tuple[str, ...]
    notes: Mapping[str, Notes]
    baselines: Mapping[str, Mapping[str, Scores]]


@dataclasses.dataclass(frozen=True)
class Settings:
    """The typed parts of a config, before any row is read.

    Attributes:
      task: the task; if `start` is None, it has a placeholder model and no vocabulary.
      start: the checkpoint that `config.init` names; None for a random encoder.
      model, tokenizer: configs of a random encoder and its tokenizer.
    """

    seed: int
    dropout: float
    data: RowsConfig
    task: Task
    start: Start | None
    model: ModelConfig
    tokenizer: TokenizerConfig
    optimizer: OptimizerConfig
    training: FinetuningConfig
    mesh: jax.sharding.Mesh


def read_settings(config: ml_collections.ConfigDict, start: Start | None = None) -> Settings:
    """Reads `config` and opens its checkpoint; reads no rows and writes no files.

    Args:
      start: the checkpoint that `config.init` names, if already open.

    Raises:
      ConfigError: a field is unknown, missing, mistyped, invalid or conflicts with another, or
        the checkpoint cannot be opened.
    """
    own = build(FinetuneConfig, config, "config")
    dropout, training, optimizer = own.dropout, own.training, own.optimizer
    if training.warmup_ratio and optimizer.warmup_steps:
        raise ConfigError(
            f"config.optimizer.warmup_steps: {optimizer.warmup_steps}, but"
            f" config.training.warmup_ratio is {training.warmup_ratio}; set one of them to 0"
        )
    mesh = make_mesh(own.mesh)
    model = own.model.for_finetuning(dropout)
    cls = resolve_type(own.task, "config.task", Task)
    if start is None and own.init:
        start = start_from(own.init, dropout).with_tokens(cls.added_tokens)
    # The placeholder lets the task read the rows that a new tokenizer is trained on.
    task: Task = build_typed(
        own.task,
        "config.task",
        Task,
        vocabulary=None if start is None else start.vocabulary,
        model=model if start is None else start.model,
    )
    if task.compares_rows and training.accumulation > 1:
        raise ConfigError(
            f"config.training.accumulation: {training.accumulation} micro-batches would divide the"
            f" negatives of each row by {training.accumulation}; set it to 1"
        )
    check_batch(training.batch_size, task.length, training.accumulation, mesh)
    return Settings(
        seed=own.seed,
        dropout=dropout,
        data=own.data,
        task=task,
        start=start,
        model=model,
        tokenizer=own.tokenizer,
        optimizer=optimizer,
        training=training,
        mesh=mesh,
    )


def prepare(config: ml_collections.ConfigDict, start: Start | None = None) -> Prepared:
    """Reads the config, the data and the checkpoint; compiles nothing and writes no files.

    Args:
      start: the checkpoint that `config.init` names, if already open.

    Raises:
      ConfigError: a field, a file or a row is invalid.
    """
    settings = read_settings(config, start)
    task, start, data = settings.task, settings.start, settings.data
    task.check_metrics()
    tests = tuple(named_tests(data))
    splits = ("train", "validation", *tests)
    notes = {split: Notes() for split in splits}
    rows = {split: read_rows(task, data, split, notes[split]) for split in splits}
    task = task.bind(rows["train"])  # before sampling: a sample may lack a class
    rows["train"] = draw(rows["train"], data.train_rows, settings.seed)
    task = task.fit(rows["train"])
    check_saved(task.saved_network)
    for split in splits:
        rows[split] = _checked(task, rows[split], split, data, notes[split])
    if start is None:
        texts = (text for row in rows["train"] for text in task.texts(row))
        start = start_random(settings.model, settings.tokenizer, texts)
        start = start.with_tokens(task.added_tokens)
        task = dataclasses.replace(task, vocabulary=start.vocabulary, model=start.model)
    examples = {
        split: task.encode(rows[split], start.tokenizer, notes[split], split == "train")
        for split in splits
    }
    scored = tests or ("validation",)
    return Prepared(
        task=task,
        start=start,
        optimizer=settings.optimizer,
        training=settings.training,
        mesh=settings.mesh,
        data=data,
        rows=rows,
        examples=examples,
        scored=scored,
        notes=notes,
        baselines={split: task.baselines(rows["train"], rows[split]) for split in scored},
    )


def named_tests(data: RowsConfig) -> dict[str, str]:
    """Returns the paths of the test sets by name; a single unnamed one is called 'test'.

    Raises:
      ConfigError: a name is invalid or a path is empty.
    """
    where = "config.data.test"
    named: Mapping[str, Any]
    if isinstance(data.test, Mapping):
        named = data.test
    elif not isinstance(data.test, str):
        raise ConfigError(f"{where}: expected a path or a block of paths, got {data.test!r}")
    elif _NAMED_SETS.fullmatch(data.test) and not pathlib.Path(data.test).exists():
        parts = [part.split("=", 1) for part in data.test.split(",")]
        named = dict(parts)
        if len(named) < len(parts):
            raise ConfigError(f"{where}: '{data.test}' uses one name for two test sets")
    else:
        named = {"test": data.test} if data.test else {}
    for name, path in named.items():
        if not re.fullmatch(_NAME, name) or name in ("train", "validation"):
            raise ConfigError(
                f"{where}: '{name}' is not a valid name of a test set; use letters, digits, - and"
                " _, but not 'train' or 'validation'"
            )
        if not isinstance(path, str) or not path:
            raise ConfigError(f"{where}.{name}: expected a path, got {path!r}")
    return dict(named)


def read_rows(task: Task, data: RowsConfig, split: str, notes: Notes) -> list[Row]:
    """Reads the usable rows of 'train', 'validation' or a test set; see `read_split`."""
    if split in ("train", "validation"):
        return read_split(data, split, task.parse, task.embedded, notes)
    data = dataclasses.replace(data, test=named_tests(data)[split])
    try:
        return read_split(data, "test", task.parse, task.embedded, notes)
    except ConfigError as error:
        raise ConfigError(str(error).replace("config.data.test", _field(split))) from error


def _field(split: str) -> str:
    """Returns the config field of a split or test set."""
    own = split in ("train", "validation", "test")
    return f"config.data.{split}" if own else f"config.data.test.{split}"


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
    settle(bad, data.on_bad_rows, _field(split), len(rows), notes)
    if rows and not good:
        raise ConfigError(
            f"{_field(split)}: none of the {len(rows)} rows fits the training rows:"
            f" {bad[0][0]}: {bad[0][1]}"
        )
    return good
