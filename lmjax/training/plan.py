"""The config of a pretraining run: parsed and checked before anything is computed."""

import dataclasses
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import jax
import ml_collections
import numpy as np

from lmjax.configuration import (
    Block,
    Interval,
    NonNegativeInt,
    PositiveInt,
    Rate,
    Seed,
    VocabSize,
    build,
    build_typed,
    check_ranges,
    convert,
    flattened,
    overlaid,
    plain,
    quoted,
    resolve_type,
)
from lmjax.data.examples import Examples
from lmjax.data.store import DataConfig
from lmjax.data.tokenizers import Tokenizer
from lmjax.data.vocabulary import Vocabulary
from lmjax.errors import ConfigError
from lmjax.models.family import ModelConfig
from lmjax.objectives.base import Objective
from lmjax.training.evaluators import Evaluator
from lmjax.training.optimizers import OptimizerConfig
from lmjax.training.sharding import DATA, FSDP, MeshConfig, check_batch, make_mesh


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """The length of training, and the intervals of logs, evaluations and checkpoints.

    Attributes:
      steps: updates.
      batch_size: examples of an update, over all devices and processes.
      accumulation: micro-batches of an update; loss and gradient do not depend on it.
      log_every, eval_every, checkpoint_every: intervals in steps. The run always evaluates
        before the first and after the last step, and saves the last step; 0 = only then.
      eval_batches: held-out batches of an evaluation, the same every time.
      checkpoints_to_keep: number of latest checkpoints to keep.
      keep_checkpoint_every: keep checkpoints of multiples of it too; 0 = none.
      best_checkpoints_to_keep: number of checkpoints of lowest held-out loss to keep too.
      ema_decay: of a moving average of the parameters, evaluated instead of them; 0 = none.
      max_loss_rise: stop when the mean loss of an interval exceeds this multiple of the
        lowest so far; 0 = never.
      skip_nonfinite: skip the update of a batch whose loss or gradient is not finite, instead of
        stopping.
      max_rewinds: how often a run that diverges returns to its last checkpoint, and skips the
        batches that caused it, instead of stopping.
    """

    steps: PositiveInt
    batch_size: PositiveInt
    accumulation: PositiveInt = 1
    log_every: PositiveInt = 50
    eval_every: NonNegativeInt = 0
    eval_batches: PositiveInt = 20
    checkpoint_every: NonNegativeInt = 0
    checkpoints_to_keep: PositiveInt = 2
    keep_checkpoint_every: NonNegativeInt = 0
    best_checkpoints_to_keep: NonNegativeInt = 0
    ema_decay: Rate = 0.0
    max_loss_rise: Annotated[float, Interval("[0, inf)")] = 2.0
    skip_nonfinite: bool = False
    max_rewinds: NonNegativeInt = 0

    def __post_init__(self) -> None:
        check_ranges(self)
        if 0 < self.max_loss_rise < 1:
            raise ConfigError(
                f"max_loss_rise: {self.max_loss_rise} of the lowest loss is less than it; give 1 or"
                " more, or 0 for no limit"
            )
        if self.keep_checkpoint_every and not self._saves_at(self.keep_checkpoint_every):
            raise ConfigError(
                f"keep_checkpoint_every: {self.keep_checkpoint_every} is not a multiple of"
                f" checkpoint_every={self.checkpoint_every}, so no checkpoint would be kept"
            )
        if self.best_checkpoints_to_keep and (
            not self.eval_every or not self.checkpoint_every % self.eval_every == 0
        ):
            raise ConfigError(
                f"best_checkpoints_to_keep: a checkpoint is compared by the evaluation of its step;"
                f" checkpoint_every={self.checkpoint_every} must be a multiple of"
                f" eval_every={self.eval_every}"
            )

    def _saves_at(self, step: int) -> bool:
        return self.checkpoint_every > 0 and step % self.checkpoint_every == 0


def _model_class(model: Mapping[str, Any], around: Mapping[str, Any], where: str) -> type:
    """The config of the model that `config.objective` trains."""
    config = where.rpartition(".")[0]
    if "objective" not in around:
        raise ConfigError(f"{config}.objective: missing; it says which model")
    return model_class(around["objective"], model, f"{config}.objective")


def model_class(objective: Mapping[str, Any], model: Mapping[str, Any], where: str) -> Any:
    """The dataclass of the model that an objective trains: the `type` of `model`, if it has one.

    Args:
      objective, model: plain values; the objective's have a `type`.
      where: path of `objective` in the config.
    """
    cls = resolve_type(objective, where, Objective)
    found = typing.get_type_hints(cls)["model"]
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise ConfigError(
            f"{where}.type: '{objective['type']}' does not declare the config of its model;"
            " annotate its field as `model: SomeConfig`"
        )
    if "type" in model:
        return resolve_type(model, f"{where.rpartition('.')[0]}.model", found)
    return cls.default_model or found


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainingData(DataConfig):
    """Which text, and how it is cut into examples; see `lmjax.data.examples`."""

    examples: Annotated[Examples, Block()]

    def __post_init__(self) -> None:
        cls = type(self.examples)
        if not hasattr(cls, "source"):
            raise ConfigError(
                f"examples.type: '{cls.__module__}.{cls.__qualname__}' is not a form of examples;"
                " those of lmjax are in lmjax.data.examples"
            )


@dataclasses.dataclass(frozen=True)
class PhaseConfig:
    """The config of a phase after the first one.

    Attributes:
      start: share of config.training.steps after which the phase starts.
      changes: fields that override those of the config, not those of the phase before. Those of
        `objective`, `data.examples`, `training.batch_size` and `training.accumulation` may change.
        A change of the optimizer's `learning_rate`, `schedule`, `warmup_steps` or `final_ratio`
        starts a schedule over the steps of the phase, without a warmup unless it is given;
        otherwise the schedule of the whole run continues.
    """

    start: Annotated[float, Interval("(0, 1)")]
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


# Fields or blocks that a phase may change.
_SCHEDULE = tuple(
    f"optimizer.{name}" for name in ("learning_rate", "schedule", "warmup_steps", "final_ratio")
)
_OF_PHASES = (
    "objective", "data.examples", "training.batch_size", "training.accumulation", *_SCHEDULE,
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """The config of a pretraining run.

    Attributes:
      seed: of all that is random.
      init: a checkpoint to begin with, whose model and tokenizer `lmjax.convert.warm_start` fills
        in; '' begins with random parameters.
      objective: `type`, an import path, and the fields of that dataclass.
      model: the fields of the config that the objective declares for its model.
      evaluators: by name, `type` and the fields of an `lmjax.training.evaluators.Evaluator`.
      phases: by name, the phases after the first one, which has no name.
    """

    # Fields that a resumed run may change. The schedule depends on the number of steps, so a longer
    # run continues on the schedule of the longer run.
    MAY_CHANGE: ClassVar[tuple[str, ...]] = (
        "training.steps",
        "training.log_every",
        "training.eval_every",
        "training.eval_batches",
        "training.checkpoint_every",
        "training.checkpoints_to_keep",
        "training.keep_checkpoint_every",
        "training.best_checkpoints_to_keep",
        "training.max_rewinds",
        "mesh.data",
        "mesh.fsdp",
        "mesh.sequence",
        "mesh.tensor",
        "data.cache_dir",
        "evaluators",
    )

    seed: Seed = 0
    init: str = ""
    objective: Annotated[Mapping[str, Any], Block(Objective, given=("model", "vocabulary"))]
    model: Annotated[Mapping[str, Any], Block(ModelConfig, find=_model_class)] = dataclasses.field(
        default_factory=dict
    )
    data: PretrainingData
    optimizer: OptimizerConfig
    training: TrainingConfig
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    evaluators: Mapping[
        str, Annotated[Mapping[str, Any], Block(Evaluator, given=("objective", "tokenizer"))]
    ] = dataclasses.field(default_factory=dict)
    phases: Mapping[str, PhaseConfig] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of a run with settings of its own.

    `objective` has a stand-in vocabulary until the data are read.

    Attributes:
      name: '' for the first phase.
      share: of the steps of the run.
      start, end: updates made before the phase and at its end.
      schedule: number of updates before the schedule of the learning rate starts, and its length.
    """

    name: str
    share: float
    start: int
    end: int
    objective: Objective
    examples: Examples
    optimizer: OptimizerConfig
    schedule: tuple[int, int]
    training: TrainingConfig


@dataclasses.dataclass(frozen=True)
class Plan:
    """A parsed config.

    Objectives, also those of the `evaluators`, have a stand-in vocabulary until the data are read.
    `vocab_size` is the config's; 0 stands for the tokenizer's.
    """

    seed: int
    data: DataConfig
    phases: Sequence[Phase]
    mesh: jax.sharding.Mesh
    vocab_size: int
    evaluators: Mapping[str, Evaluator]

    @property
    def objective(self) -> Objective:
        """Of the first phase."""
        return self.phases[0].objective

    @property
    def examples(self) -> Examples:
        """Of the first phase."""
        return self.phases[0].examples

    @property
    def optimizer(self) -> OptimizerConfig:
        """Of the first phase."""
        return self.phases[0].optimizer

    @property
    def training(self) -> TrainingConfig:
        """Of the first phase."""
        return self.phases[0].training

    def phase_at(self, step: int) -> Phase:
        """The phase that makes update `step`, counted from 1; the first phase for step 0."""
        return next(phase for phase in self.phases if step <= phase.end)

    def evaluators_for(self, objective: Objective, tokenizer: Tokenizer) -> dict[str, Evaluator]:
        """The evaluators of the run, by name."""
        return {
            name: dataclasses.replace(evaluator, objective=objective, tokenizer=tokenizer)
            for name, evaluator in self.evaluators.items()
        }

    def objective_for(self, vocabulary: Vocabulary, phase: Phase | None = None) -> Objective:
        """The objective of a phase, by default the first, over the tokenizer's real vocabulary.

        Raises:
          ConfigError: the tokenizer has more ids than the token table of the model.
        """
        objective = (phase or self.phases[0]).objective
        model = objective.model
        if 0 < self.vocab_size < vocabulary.size:
            raise ConfigError(
                f"config.model.vocab_size: {self.vocab_size} rows are too few for the"
                f" tokenizer's {vocabulary.size} tokens; raise it, or 0 takes the tokenizer's"
            )
        model.check_padding(vocabulary.pad)
        size = self.vocab_size or vocabulary.size
        model = dataclasses.replace(model, vocab_size=size)
        return dataclasses.replace(objective, model=model, vocabulary=vocabulary)


def make_plan(
    config: ml_collections.ConfigDict, devices: Sequence[jax.Device] | None = None
) -> Plan:
    """Parses every field of `config`; computes and writes nothing.

    Args:
      config: plain values; fields that are left out have the defaults of `PretrainConfig`.
      devices: of the mesh; None uses `jax.devices()`.

    Raises:
      ConfigError: a field is unknown, missing, mistyped or cannot work, alone or together
        with another.
    """
    values = plain(config)
    own = build(PretrainConfig, values, "config")
    mesh = make_mesh(own.mesh, devices)
    steps = own.training.steps
    names, starts = ["", *own.phases], [0.0, *(phase.start for phase in own.phases.values())]
    order = sorted(range(len(names)), key=lambda i: starts[i])
    names, starts = [names[i] for i in order], [starts[i] for i in order]
    phases = []
    for name, begin, following in zip(names, starts, [*starts[1:], 1.0], strict=True):
        start, end = round(begin * steps), round(following * steps)
        if start == end:
            raise ConfigError(
                f"config.phases{name and '.'}{name}: no step of config.training.steps={steps}"
                " belongs to it; let the phases start further apart, or take more steps"
            )
        span = {"name": name, "share": following - begin, "start": start, "end": end}
        if not name:
            phases.append(_phase(own, mesh, (0, steps), **span))
            continue
        changes = plain(own.phases[name].changes)
        where = f"config.phases.{name}"
        anew = _check_changes(changes, where)
        if anew:
            changes = overlaid({"optimizer": {"warmup_steps": 0}}, changes)
        try:
            changed = build(PretrainConfig, overlaid(values, changes), "config")
            phase = _phase(changed, mesh, (start, end - start) if anew else (0, steps), **span)
        except ConfigError as error:
            raise ConfigError(f"{where}, with its changes: {error}") from error
        if phase.objective.model != phases[0].objective.model:
            raise ConfigError(
                f"{where}.changes.objective: trains a {type(phase.objective.model).__name__}, and"
                f" the first phase a {type(phases[0].objective.model).__name__}; set"
                " config.model.type, or use objectives of one model"
            )
        phases.append(phase)
    if own.phases and own.training.best_checkpoints_to_keep:
        raise ConfigError(
            "config.training.best_checkpoints_to_keep: the held-out losses of phases cannot be"
            " compared; set it to 0, keep_checkpoint_every keeps checkpoints too"
        )
    return Plan(
        seed=own.seed,
        data=own.data,
        phases=phases,
        mesh=mesh,
        vocab_size=_wanted_vocab_size(own),
        evaluators=_evaluators(own.evaluators, phases[0].objective),
    )


def _wanted_vocab_size(own: PretrainConfig) -> int:
    """The number of rows of the token table; 0 takes the tokenizer's."""
    return convert(own.model.get("vocab_size", 0), VocabSize, "config.model.vocab_size")


def _check_changes(changes: Mapping[str, Any], where: str) -> bool:
    """Checks which fields a phase changes. Returns whether it has a schedule of its own."""
    for path in flattened(changes):
        if not any(f"{path}.".startswith(f"{field}.") for field in _OF_PHASES):
            raise ConfigError(
                f"{where}.changes.{path}: all phases share this field; a phase may change"
                f" {', '.join(_OF_PHASES)}"
            )
    return any(path in _SCHEDULE for path in flattened(changes))


def _phase(
    own: PretrainConfig, mesh: jax.sharding.Mesh, schedule: tuple[int, int], **span: Any
) -> Phase:
    """Builds and checks a phase. own: the config with the changes of the phase."""
    examples, training, optimizer = own.data.examples, own.training, own.optimizer
    if optimizer.warmup_steps > schedule[1]:
        whole = schedule == (0, training.steps)
        steps = "config.training.steps=" if whole else "the steps of the phase, "
        raise ConfigError(
            f"config.optimizer.warmup_steps: {optimizer.warmup_steps} exceed {steps}{schedule[1]};"
            " shorten the warmup"
        )
    size = _wanted_vocab_size(own) or own.data.tokenizer.vocab_size
    objective = make_objective(own.objective, own.model, size)
    objective.check_length(examples.length)
    _check_segments(objective.model, examples)
    ratio = getattr(getattr(objective.model, "trunk", None), "width_ratio", 1.0)
    if ratio != 1.0:
        if optimizer.name not in ("adamw", "lion"):
            raise ConfigError(
                f"config.optimizer.name: '{optimizer.name}' takes steps relative to the parameters,"
                " which config.model.trunk.base_width does not support; use adamw or lion"
            )
        optimizer = dataclasses.replace(optimizer, kernel_share=optimizer.kernel_share / ratio)
    check_batch(training.batch_size, examples.length, training.accumulation, mesh)
    devices = mesh.shape[DATA] * mesh.shape[FSDP]
    objective.check_rows(training.batch_size // training.accumulation, devices)
    return Phase(
        objective=objective,
        examples=examples,
        optimizer=optimizer,
        schedule=schedule,
        training=training,
        **span,
    )


def _evaluators(blocks: Any, objective: Objective) -> dict[str, Evaluator]:
    where = "config.evaluators"
    for name in blocks:
        if not re.fullmatch(r"[\w-]+", name):
            raise ConfigError(
                f"{where}: name {quoted(name)} may have only letters, digits, - and _"
            )
    return {
        name: build_typed(block, f"{where}.{name}", Evaluator, objective=objective, tokenizer=None)
        for name, block in blocks.items()
    }


def _check_segments(model: Any, examples: Examples) -> None:
    """Checks that the model's segment table, if it has one, has all segments of the rows."""
    rows, wanted = getattr(model, "segment_types", None), getattr(examples, "segment_types", 1)
    if rows and rows < wanted:
        raise ConfigError(
            f"config.model.segment_types: {rows}, but rows of config.data.examples.type="
            f"{type(examples).__name__} have {wanted} segments; set it to {wanted}"
        )


def make_objective(
    objective: Mapping[str, Any], model: Mapping[str, Any], vocab_size: int
) -> Objective:
    """Builds the objective with a stand-in vocabulary of `vocab_size` tokens.

    It suffices to check a config, and to count parameters and FLOPs, without data.

    Args:
      objective: block of the config; its `type` names the class.
      model: block of the config.
      vocab_size: rows of the token table.
    """
    ones = np.broadcast_to(np.True_, vocab_size)
    stand_in = Vocabulary(
        size=vocab_size,
        pad=0,
        unk=1,
        cls=2,
        sep=3,
        mask=4,
        eod=5,
        special=np.broadcast_to(np.False_, vocab_size),
        starts_word=ones,
        log_frequency=np.broadcast_to(np.float32(-np.log(vocab_size)), vocab_size),
    )
    where = "config.objective"
    model_config: Any = build(model_class(objective, model, where), model, "config.model")
    model_config = dataclasses.replace(model_config, vocab_size=vocab_size)
    cls = resolve_type(objective, where, Objective)
    made: Objective = build(cls, objective, where, model=model_config, vocabulary=stand_in)
    if cls.network is Objective.network:
        return made  # it has parameters of its own, and its runs cannot be opened
    try:
        _ = made.network  # a family may lack the network that the objective trains
    except ConfigError as error:
        raise ConfigError(f"config.{error}") from error
    return made
