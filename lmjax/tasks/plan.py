"""A fine-tuning config, read and checked; its data and its start, prepared once for all seeds."""

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class SharedConfig:
    """What the configs of fine-tuning one task and several have in common.

    Attributes:
      seed: of all that is random.
      seeds: how many seeds are trained.
      init: the checkpoint to begin with; '' begins with a random encoder of `model` and a
        tokenizer trained on the rows.
      compare_scratch: train a random encoder beside the pretrained one.
      dropout: of the encoder.
      model, tokenizer: of a random encoder.
    """

    # What a continued run may change.
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
      data: its rows.
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
    """The config of fine-tuning several tasks at once.

    Attributes:
      tasks: by name.
      temperature: a task of n examples is drawn in proportion to n^(1 / temperature).
    """

    tasks: Mapping[str, TaskConfig]
    temperature: Annotated[float, Interval("(0, inf)")] = 2.0


@dataclasses.dataclass(frozen=True)
class Prepared:
    """All that the seeds of a run share.

    Attributes:
      start: the pretrained encoder, or a random one.
      rows, examples: of 'train', 'validation' and each of the test sets.
      scored: the splits that the reported scores are of: the test sets, or 'validation' where
        there is none.
      notes: what was skipped, cut or split.
      baselines: of each of `scored`, what simple rules score on its rows.
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
    """A config as typed parts, before any row is read.

    Attributes:
      task: of a stand-in model, without a vocabulary, where `start` is None.
      start: what `config.init` names; None for a random one.
      model, tokenizer: of a random start.
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
    """Reads every field of `config`, and opens the start; reads no rows and writes nothing.

    Args:
      start: what `config.init` names, where it is open already.

    Raises:
      ConfigError: a field is unknown, missing, mistyped or cannot work, alone or together
        with another; or the start cannot be opened.
    """
    own = build(FinetuneConfig, config, "config")
    dropout, training, optimizer = own.dropout, own.training, own.optimizer
    if training.warmup_ratio and optimizer.warmup_steps:
        raise ConfigError(
            f"config.optimizer.warmup_steps: {optimizer.warmup_steps}, and"
            f" config.training.warmup_ratio is {training.warmup_ratio}; set one of them to 0"
        )
    mesh = make_mesh(own.mesh)
    model = own.model.for_finetuning(dropout)
    cls = resolve_type(own.task, "config.task", Task)
    if start is None and own.init:
        start = start_from(own.init, dropout).with_tokens(cls.added_tokens)
    # The stand-in lets the task read rows, which a random start's tokenizer is trained on.
    task: Task = build_typed(
        own.task,
        "config.task",
        Task,
        vocabulary=None if start is None else start.vocabulary,
        model=model if start is None else start.model,
    )
    if task.compares_rows and training.accumulation > 1:
        raise ConfigError(
            f"config.training.accumulation: {training.accumulation} micro-batches would leave a row"
            f" with {training.accumulation} times fewer others to be told from; set it to 1"
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
    """Reads the config, the data and the start; compiles and writes nothing.

    Args:
      start: what `config.init` names, where it is open already.

    Raises:
      ConfigError: a field, a file or a row that cannot work.
    """
    settings = read_settings(config, start)
    task, start, data = settings.task, settings.start, settings.data
    task.check_metrics()
    tests = tuple(named_tests(data))
    splits = ("train", "validation", *tests)
    notes = {split: Notes() for split in splits}
    rows = {split: read_rows(task, data, split, notes[split]) for split in splits}
    task = task.bind(rows["train"])  # all of them: few may lack a class
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
    """The test sets by name: several, 'test' alone, or none.

    Raises:
      ConfigError: a name that no file can be named after, or a path that is empty.
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
            raise ConfigError(f"{where}: two test sets of one name in '{data.test}'")
    else:
        named = {"test": data.test} if data.test else {}
    for name, path in named.items():
        if not re.fullmatch(_NAME, name) or name in ("train", "validation"):
            raise ConfigError(
                f"{where}: '{name}' cannot name a test set; take letters, digits, - and _, and"
                " neither 'train' nor 'validation'"
            )
        if not isinstance(path, str) or not path:
            raise ConfigError(f"{where}.{name}: expected a path, got {path!r}")
    return dict(named)


def read_rows(task: Task, data: RowsConfig, split: str, notes: Notes) -> list[Row]:
    """The usable rows of 'train', 'validation' or a test set; see `read_split`."""
    if split in ("train", "validation"):
        return read_split(data, split, task.parse, task.embedded, notes)
    data = dataclasses.replace(data, test=named_tests(data)[split])
    try:
        return read_split(data, "test", task.parse, task.embedded, notes)
    except ConfigError as error:
        raise ConfigError(str(error).replace("config.data.test", _field(split))) from error


def _field(split: str) -> str:
    """The config's field of a split or test set."""
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
