"""Inference with saved models: `lmjax.load` restores a model and, if it has one, its task."""

import dataclasses
import functools
import pathlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

import jax
import numpy as np

from lmjax.atomic import write_json
from lmjax.configuration import allowing, build, build_typed, opening
from lmjax.convert import runs
from lmjax.convert.huggingface import read_json
from lmjax.convert.pretrained import Pretrained
from lmjax.data.formats import Sentence
from lmjax.data.rows import BadRowError, Notes, Row, RowsConfig, place_of, sound
from lmjax.errors import ConfigError
from lmjax.generation.api import generate
from lmjax.generation.outputs import Generated
from lmjax.generation.prompts import Prompts
from lmjax.models.heads import Headed
from lmjax.nn.lora import LoraConfig
from lmjax.tasks.base import Gold, Task
from lmjax.tasks.classification import Classification, Regression
from lmjax.tasks.collate import Collator
from lmjax.tasks.embeddings import Embeddings
from lmjax.tasks.multiple_choice import MultipleChoice
from lmjax.tasks.plan import named_tests, read_rows
from lmjax.tasks.predictor import Predictor
from lmjax.tasks.question_answering import QuestionAnswering
from lmjax.tasks.tagging import Tagging
from lmjax.training.sharding import MeshConfig, make_mesh, shardings

_BATCH, _FEW = 32, 4
_SHORTEST, _LONGEST = 16, 512  # input length of published models, in tokens
_TASK = "task.json"
_HEADS: dict[str, type[Task]] = {
    "sequence_classification": Classification,
    "token_classification": Tagging,
    "question_answering": QuestionAnswering,
    "multiple_choice": MultipleChoice,
}
# The `problem_type` of transformers' config.json.
_PROBLEMS: dict[type[Task], str] = {
    Classification: "single_label_classification",
    Regression: "regression",
}


class Item(NamedTuple):
    """An input row, and the task's parsed row or the reason why it cannot be used.

    Attributes:
      own: the fields of the input row; {} if a source row nests several.
      row: the parsed row, or an error.
      where: location in the source; '' if there is none to report.
    """

    own: Row
    row: Row | BadRowError
    where: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Opened(Pretrained):
    """A model with its tokenizer and, if it was fine-tuned, its task.

    Attributes:
      task: None if the model's head belongs to no task.
      data: the data that an lmjax run was fine-tuned on.
    """

    task: Task | None = None
    data: RowsConfig | None = None

    def predict(self, rows: Sequence[str | Mapping[str, Any]]) -> list[Row]:
        """Predicts new rows; labels are optional.

        Args:
          rows: dicts with the columns that the task was trained with, or with the keys of
            predictions ('text', 'pair', 'words', 'question', 'context', 'choices', ...). A plain
            string is the text of a task that reads a single text. A row in SQuAD's nested format
            yields one prediction per question.

        Returns:
          One dict per row, in order: all fields of the row, 'prediction', and 'confidence' if the
          task has one. Rows with a label also get the values that depend on the label.

        Raises:
          ConfigError: the model has no task, a row cannot be used, or a token id is outside of
            the embedding table.
          NonFiniteError: the model outputs NaN or infinity.
        """
        if isinstance(rows, str | Mapping):
            raise ConfigError("rows: got a single row; pass a list of texts or dicts")
        items = []
        for i, values in enumerate(rows):
            found = self.read(values)
            for item in found:
                if isinstance(item.row, BadRowError):
                    raise ConfigError(f"{place_of(item.row, f'rows[{i}]')}: {item.row}")
            items += found
        told = self.told(items, whole=True)
        return [line(item, found) for item, found in zip(items, told, strict=True)]

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Embeds texts with a run of `Embeddings`.

        Texts longer than the task's length are truncated.

        Returns:
          [texts, hidden_size] float32, vectors of length 1.

        Raises:
          ConfigError: the model is not a run of `Embeddings`, or a text is empty.
        """
        if not isinstance(self.task, Embeddings):
            raise ConfigError("the model embeds no texts; load a run of lmjax.tasks.embeddings")
        found = [row["prediction"] for row in self.predict(texts)]
        return np.array(found, np.float32).reshape(len(texts), self.task.model.trunk.hidden_size)

    def generate(self, prompts: Prompts, **settings: Any) -> list[Generated]:
        """`lmjax.generate` with this model."""
        return generate(self, prompts, **settings)

    def read(self, values: Any, where: str = "", gold: Gold = "optional") -> list[Item]:
        """Parses an input row for the task; a nested row gives several items.

        Args:
          values: a text, a dict of columns, or a BadRowError.
          where: location in the source; '' if there is none to report.
          gold: how labels are treated.

        Raises:
          ConfigError: the model has no task.
        """
        task = self._with_task()
        own: Row = {}
        parsed: Any
        try:
            if isinstance(values, BadRowError):
                raise values
            if not isinstance(values, str | Mapping):
                raise BadRowError("neither a text nor a dict")
            own = {task.reads: values} if isinstance(values, str) else dict(values)
            parsed = task.parse(own, gold)
        except BadRowError as error:
            parsed = error
        if isinstance(parsed, list):
            own = {}
        more = {"where": where} if where else {}
        if isinstance(values, Sentence) and values.document:
            more["document"] = values.document
        items = []
        for row in map(sound, parsed if isinstance(parsed, list) else [parsed]):
            if isinstance(row, BadRowError):
                items.append(Item(own, row, where and place_of(row, where, values)))
            else:
                items.append(Item(own, row | more, where))
        return items

    def told(
        self, items: Sequence[Item], notes: Notes | None = None, whole: bool = False
    ) -> list[Row | None]:
        """Runs `Task.predict` on the items; the result is None for unusable items.

        Args:
          notes: records what was truncated or split.
          whole: whether the rows are the complete set; see `Task.predict`.
        """
        task, rows = self._with_task(), [i.row for i in items if isinstance(i.row, dict)]
        if not rows:
            return [None] * len(items)
        assert self.tokenizer is not None
        predictor, params, mesh = self._predictor
        with jax.set_mesh(mesh):
            examples = task.encode(rows, self.tokenizer, notes or Notes(), False)
            for example in examples:
                self.check_ids(example["tokens"].reshape(-1), "rows")
            outputs, _ = predictor.outputs(params, rows, examples)
        found = iter(task.predict(rows, examples, outputs, whole))
        return [next(found) if isinstance(item.row, dict) else None for item in items]

    @functools.cached_property
    def _predictor(self) -> tuple[Predictor, Any, jax.sharding.Mesh]:
        """The predictor, its parameters and its mesh of one device."""
        task, mesh = self._with_task(), make_mesh(MeshConfig(data=1))
        assert self.tokenizer is not None
        placed = shardings(self.params, mesh)
        predictor = Predictor(task, Collator(task, _BATCH, few=_FEW), mesh, placed, self.tokenizer)
        return predictor, jax.device_put(self.params, placed), mesh

    def _with_task(self) -> Task:
        if self.task is None:
            raise ConfigError(
                f"a {type(self.network).__name__} has no task to predict; load a run of"
                " experiments.finetune, or a model with a head and a tokenizer"
            )
        return self.task

    def rows(self, split: str) -> list[Row]:
        """Returns the usable rows of a split or test set of the run's fine-tuning data."""
        return read_rows(self._with_task(), self._with_data(), split, Notes())

    def held_out(self) -> list[Row]:
        """Returns the rows of all test sets, or of validation if there are none."""
        names = tuple(named_tests(self._with_data())) or ("validation",)
        return [row for name in names for row in self.rows(name)]

    def _with_data(self) -> RowsConfig:
        if self.data is None:
            raise ConfigError("the model has no data of its own; pass texts, or load a run")
        return self.data


def load(path: str | pathlib.Path, allow_modules: Collection[str] = ()) -> Opened:
    """Opens a pretrained or fine-tuned model.

    A run stores the import paths of its classes, and importing a module executes code. Only
    classes of lmjax and of the modules in `allow_modules` are imported.

    Args:
      path: one of
        - the --workdir of a pretraining run. The latest checkpoint is loaded: the moving average
          of the parameters if the run keeps one.
        - the --workdir of a finished fine-tuning run, followed by '/' and the task's name if
          several tasks were trained.
        - a directory with config.json, model.safetensors (or shards and their index) and
          tokenizer.json: BERT, GPT-2, XLNet, ELECTRA's generator or discriminator, with or
          without heads.
      allow_modules: other modules that a run may import classes from; ['my_package'] allows all
        of the package.

    Returns:
      The network with its parameters on the first device. A fine-tuned model has a task and can
      predict. Peak memory is the parameters plus one tensor.

    Raises:
      ConfigError: `path` contains no model; tensors are damaged, mismatched or missing; the
        config needs an unsupported function or a module that is not allowed.
    """
    pretrained = runs.load(path, allow_modules)
    opened = Opened(**{f.name: getattr(pretrained, f.name) for f in fields(pretrained)})
    if pathlib.Path(path).is_file():  # an ARPA file
        return opened
    file = pathlib.Path(path) / _TASK
    file = file if file.exists() else file.with_name("config.json")
    values = read_json(file)
    if "task" not in values:
        return dataclasses.replace(opened, task=_of_head(pretrained, values))
    with allowing(allow_modules), opening():
        task = _built(pretrained, values["task"], f"{file}: task")
    data = build(RowsConfig, values.get("data", {}), f"{file}: data")
    return dataclasses.replace(opened, task=task, data=data)


def open_run(path: str | pathlib.Path, kind: type[Task], flag: str) -> Opened:
    """Opens a model that was fine-tuned on a given task.

    Args:
      kind: the expected task.
      flag: the flag that names the model, for messages.

    Raises:
      ConfigError: as `load`, or the model has another task or none.
    """
    opened = load(path)
    if not isinstance(opened.task, kind):
        found = type(opened.task).__name__ if opened.task else "no task"
        raise ConfigError(f"{flag}: '{path}' is a model for {found}, not for {kind.__name__}")
    return opened


def write_task(task: Task, data: RowsConfig, directory: pathlib.Path) -> None:
    """Writes task.json, from which `load` restores the task, including values fitted to rows.

    Args:
      data: the task's fine-tuning data.
    """
    left_out = {"model", "vocabulary", "adapter"}  # adapters are merged
    kept = {
        f.name: getattr(task, f.name) for f in fields(task) if f.init and f.name not in left_out
    }
    name = f"{type(task).__module__}.{type(task).__qualname__}"
    values = {"task": {"type": name, **kept}, "data": data}
    write_json(directory / _TASK, values, default=dataclasses.asdict)


def _built(pretrained: Pretrained, values: Mapping[str, Any], where: str) -> Task:
    """Builds the task of a network."""
    network: Any = pretrained.network
    tokenizer = pretrained.tokenizer
    assert tokenizer is not None
    task: Task = build_typed(
        values,
        where,
        Task,
        model=pretrained.config,
        vocabulary=tokenizer.vocabulary(np.zeros(tokenizer.size)),
    )
    labels = task.labels or pretrained.labels
    task = dataclasses.replace(task, labels=labels, adapter=LoraConfig())
    if _kind(task.network) != _kind(network):
        raise ConfigError(f"{where}: the network belongs to another task")
    return task


def _kind(network: Any) -> tuple[str, type | None, int]:
    """Returns the purpose of a network's head, its type and its number of classes."""
    if not isinstance(network, Headed):
        return "", None, 0
    return network.task, type(network.head), network.classes


def _of_head(pretrained: Pretrained, config: Mapping[str, Any]) -> Task | None:
    """Infers the task of a published model from its head and config.json, if possible."""
    network: Any = pretrained.network
    if pretrained.tokenizer is None or not isinstance(network, Headed):
        return None
    cls = _HEADS.get(network.task)
    if cls is Classification and network.classes == 1:
        cls = Regression
    if cls is None or config.get("problem_type") not in (None, _PROBLEMS.get(cls)):
        return None  # multi-label classification or multi-output regression
    length = min(getattr(pretrained.config, "max_length", _LONGEST), _LONGEST)
    if length < _SHORTEST:
        return None
    values: dict[str, Any] = {"type": f"{cls.__module__}.{cls.__qualname__}", "length": length}
    if cls is Tagging:
        values["score"] = "words"
    if cls is QuestionAnswering:
        values |= {"question_length": min(64, length // 4), "stride": min(128, length // 4)}
    task = _built(pretrained, values, "task")
    nothing = np.zeros(0, np.int32)
    read = max(*task.form.join(nothing, nothing).tokens, task.vocabulary.pad)
    # Special tokens outside of the embedding table mean that it uses another input format.
    return task if read < task.model.vocab_size else None


def line(item: Item, told: Row | None) -> Row:
    """Joins a row's own fields with its prediction, or with the reason for none under 'error'.

    Numbered columns that the task has read appear only under the task's key.
    """
    if told is None:
        place = {"where": item.where} if item.where else {}
        return {**place, **item.own, "error": str(item.row)}
    assert isinstance(item.row, dict)  # otherwise there is no prediction
    taken = {id(value) for value in item.row.values()}
    own = {
        name: value
        for name, value in item.own.items()
        if not str(name).lstrip("-").isdigit() or not (name[0] == "-" or id(value) in taken)
    }
    read = {name: value for name, value in told.items() if name in item.row}
    return {**read, **own, **added(item, told)}


def added(item: Item, told: Row) -> Row:
    """Returns the fields that the prediction adds to the row."""
    assert isinstance(item.row, dict)
    return {name: value for name, value in told.items() if name not in item.row}
