"""The base class of fine-tuning tasks: encoding rows, a head and its loss, and scores.

A task is an objective: it shares the step, accumulation, mesh, checkpoints and dropout of
pretraining. Each task has its own file.
"""

import collections
import dataclasses
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import jax
import numpy as np

from lmjax.configuration import Interval, Rate
from lmjax.data.rows import BadRowError, Notes, Row, column
from lmjax.data.tokenizers import Tokenizer
from lmjax.errors import ConfigError
from lmjax.models import heads
from lmjax.models.family import ModelConfig
from lmjax.models.network import Network, TextInputs
from lmjax.nn.dropout import Seeds
from lmjax.nn.lora import LoraConfig, init_adapters, merge
from lmjax.objectives.base import Batch, Objective, Scored, apply
from lmjax.tasks.input_format import InputFormat
from lmjax.trees import map_named

Example = dict[str, np.ndarray]
Outputs = dict[str, Any]
Scores = dict[str, float]
# How the gold of a row is treated: training requires it; an optional one is read if present; an
# ignored one is never read.
Gold = Literal["required", "optional", "ignored"]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Task(Objective):
    """Base of all tasks: a frozen dataclass whose fields are `config.task`.

    Attributes:
      head: name of a head in `lmjax.models.heads`. A task with its own head overrides `network`
        to return a `Headed` with that head.
      per_token: example arrays with one entry per token along the last axis, and their padding
        values; 'tokens' is padded with the padding token.
      token_outputs: outputs of `forward` that have a token axis, directly after the batch axis.
      columns: fields that name a column -> key of the column's value in a parsed row.
      reads: key of a parsed row that a plain string is stored under.
      ranks_rows: whether `predict` compares the rows with each other.
      added_tokens: special tokens of the examples that the tokenizer lacks.
      length: longest input in tokens, including special tokens.
      head_dropout: dropout rate in the head; ignored where a family's head has none (GPT).
      freeze: 'trunk' trains only the head (a linear probe); '' trains all parameters.
      adapter: trains low-rank matrices added to the kernels, and the head.
      labels: the classes in the order of their ids; () takes those of the training rows.
    """

    head: ClassVar[heads.Task | str]
    per_token: ClassVar[dict[str, int]] = {"tokens": 0, "token_types": 0, "segment_ids": 0}
    token_outputs: ClassVar[tuple[str, ...]] = ()
    columns: ClassVar[Mapping[str, str]] = {}
    reads: ClassVar[str] = "text"
    ranks_rows: ClassVar[bool] = False

    added_tokens: ClassVar[tuple[str, ...]] = ()

    model: ModelConfig
    length: Annotated[int, Interval("[8, 2**20]")] = 128
    head_dropout: Rate = 0.1
    freeze: Literal["", "trunk"] = ""
    adapter: LoraConfig = dataclasses.field(default_factory=LoraConfig)
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.freeze and self.adapter.rank:
            raise ConfigError("freeze: an adapter already freezes the trunk; set it to ''")
        longest = getattr(self.model, "max_length", None)
        if longest is not None and self.length > longest:
            raise ConfigError(
                f"length: {self.length} is longer than the model's position table of {longest};"
                " shorten it"
            )

    # Data.

    def parse(self, values: Row, gold: Gold = "required") -> Row | list[Row | BadRowError]:
        """Converts the columns of a source row to the task's row, with the label under 'gold'.

        If the gold is not required, a column may also be named after its key in the parsed row.

        Returns:
          One row, or a list if the source row nests several; its entries may be BadRowErrors.

        Raises:
          BadRowError: the row cannot be used.
        """
        if gold != "required":
            given = {name: value for name, value in values.items() if value is not None}
            named = {c: given[name] for c, name in self.names.items() if name in given}
            values = named | given
        row = self.parse_inputs(values)
        if gold == "required" or (gold == "optional" and self.has_gold(values)):
            row |= self.parse_gold(values, row)
        if gold != "required":
            self.check(row)
        return row

    @property
    def names(self) -> dict[str, str]:
        """Column name -> key of its value in a parsed row."""
        named = {getattr(self, field): name for field, name in self.columns.items()}
        return {column: name for column, name in named.items() if column}

    def parse_inputs(self, values: Row) -> Row:
        """Extracts the model's inputs from a row. Raises BadRowError."""
        raise NotImplementedError

    def parse_gold(self, values: Row, row: Row) -> Row:
        """Returns {'gold': the label} and other values that training reads. Raises BadRowError.

        Args:
          values: the columns.
          row: the result of `parse_inputs`.
        """
        raise NotImplementedError

    def has_gold(self, values: Row) -> bool:
        """Whether the columns contain a label; an empty table cell does not count."""
        return any(filled(values.get(c)) for c, name in self.names.items() if name == "gold")

    def embedded(self, split: str, cache_dir: str) -> Iterator[Row]:
        """Yields parsed rows built from docstrings, for use without data files."""
        del split, cache_dir
        raise ConfigError(
            f"config.data.train: docstrings hold no rows for {type(self).__name__}; give a file"
        )

    def texts(self, row: Row) -> Iterator[str]:
        """Yields the texts of a row for tokenizer training."""
        raise NotImplementedError

    def check_metrics(self) -> None:
        """Raises ConfigError if a package that `scores` needs is not installed."""

    def bind(self, rows: Sequence[Row]) -> "Task":
        """Returns the task with values collected from all its rows for training, e.g. labels."""
        return self

    def fit(self, rows: Sequence[Row]) -> "Task":
        """Returns the task with statistics of the rows sampled for training."""
        return self

    @property
    def tunes(self) -> bool:
        """Whether the task selects something on the validation rows after training."""
        return False

    def tune(self, predictions: Sequence[Row]) -> tuple["Task", Scores]:
        """Returns the task with the selected values, and the scores behind the selection.

        Args:
          predictions: predictions for the validation rows.
        """
        raise NotImplementedError

    def check(self, row: Row) -> None:
        """Raises BadRowError for a row that does not fit the training rows."""

    def encode(
        self, rows: Sequence[Row], tokenizer: Tokenizer, notes: Notes, training: bool
    ) -> list[Example]:
        """Encodes rows as examples, each with the index of its row under 'row'.

        Rows may lack gold; the loss targets of such rows are arbitrary.

        Args:
          notes: records what was truncated, split or skipped.
          training: whether the examples are used for training.
        """
        raise NotImplementedError

    # Training.

    @property
    def compares_rows(self) -> bool:
        """Whether the loss of a row depends on the other rows of its batch."""
        return False

    @property
    def class_names(self) -> tuple[str, ...]:
        """The labels stored in a saved model; () if they do not name classes."""
        return self.labels if self.head.endswith("classification") else ()

    @property
    def form(self) -> InputFormat:
        return InputFormat(self.model, self.vocabulary)

    @property
    def network(self) -> Network:
        if self.head not in typing.get_args(heads.Task):
            known = ", ".join(typing.get_args(heads.Task))
            raise ConfigError(
                f"task: {type(self).__name__} has an unknown head '{self.head}' (known: {known});"
                " override its property `network`"
            )
        head = typing.cast(heads.Task, self.head)
        return self.model.headed(head, len(self.labels), self.head_dropout)

    @property
    def saved_network(self) -> Network:
        """The network to save; it has the parameters of `network`."""
        return self.network

    def trainable(self, path: tuple[str, ...]) -> bool:
        """Whether the parameter at `path` is trained."""
        frozen = self.freeze == "trunk" or self.adapter.rank > 0
        return not (frozen and path[0] == "encoder")

    def init(self, key: jax.Array, batch: Batch) -> Any:
        params = self.fresh(key, batch)
        if not self.adapter.rank:
            return params
        adapters = init_adapters(jax.random.fold_in(key, 1), params["encoder"], self.adapter)
        return {**params, "adapters": adapters}

    def merged(self, params: Any) -> Any:
        """Returns the network's parameters with adapters merged into their kernels."""
        return merge(params, self.adapter.scale)

    def fresh(self, key: jax.Array, batch: Batch) -> Any:
        """Initializes the network's parameters."""
        return self.network.init(key, *self.inputs(batch))["params"]

    def loss(self, params: Any, batch: Batch, mems: Any, seeds: Seeds | None) -> Scored:
        def stopped(names: tuple[str, ...], leaf: jax.Array) -> jax.Array:
            # Skips the backward pass below the lowest trained layer.
            return leaf if self.trainable(names) else jax.lax.stop_gradient(leaf)

        params = map_named(stopped, params)
        return self.compute_loss(self.forward(self.merged(params), batch, seeds), batch)

    def forward(self, params: Any, batch: Batch, seeds: Seeds | None) -> Outputs:
        """Returns the head's 'logits' and other outputs that `compute_loss` or `predict` reads."""
        return {"logits": apply(self.network, params, *self.inputs(batch), seeds)}

    def compute_loss(self, outputs: Outputs, batch: Batch) -> Scored:
        """Computes the loss from outputs; `batch['weight']` [batch] is 0 for padding rows."""
        raise NotImplementedError

    def inputs(self, batch: Batch, mems: Any = None) -> tuple[TextInputs]:
        """Returns the network's argument; each text of a multi-text example becomes a row."""
        names = ("tokens", "token_types", "segment_ids")
        tokens, types, segments = (batch[n].reshape(-1, batch[n].shape[-1]) for n in names)
        return (self.model.inputs(tokens, types, segments > 0),)

    def forward_flops(self, length: int) -> float | None:
        return self.model.forward_flops(length)

    # Prediction.

    def write(
        self, params: Any, tokenizer: Tokenizer, examples: Sequence[Example]
    ) -> list[Outputs]:
        """Returns additional outputs that need more than one forward pass, e.g. generated text."""
        del params, tokenizer
        return [{} for _ in examples]

    def predict(
        self,
        rows: Sequence[Row],
        examples: Sequence[Example],
        outputs: Sequence[Outputs],
        whole: bool = True,
    ) -> list[Row]:
        """Returns one JSON object per row: the row itself, 'prediction' and 'confidence'.

        Args:
          rows: with or without 'gold'.
          outputs: outputs of each example without padding, including those of `write`.
          whole: whether the rows are the complete set, so that they can be compared with each
            other (`ranks_rows`).
        """
        raise NotImplementedError

    def scored(self, prediction: Row) -> bool:
        """Whether `scores` can evaluate a prediction."""
        return "gold" in prediction

    def scores(self, predictions: Sequence[Row]) -> Scores:
        """Computes the scores; the main one comes first."""
        raise NotImplementedError

    def baselines(self, train: Sequence[Row], rows: Sequence[Row]) -> dict[str, Scores]:
        """Returns the scores of simple baselines on the same rows."""
        del train, rows
        return {}

    def report(self, predictions: Sequence[Row]) -> list[str]:
        """Returns an error analysis as lines of Markdown."""
        del predictions
        return []

    def unpadded(self, example: Example, outputs: Outputs) -> Outputs:
        """Removes padding from the per-token outputs of an example."""
        count = example["tokens"].shape[-1]
        own = slice(-count, None) if self.form.left_padded else slice(count)
        return {n: x[own] if n in self.token_outputs else x for n, x in outputs.items()}

    def example(
        self, row: int, tokens: np.ndarray, token_types: np.ndarray, **more: Any
    ) -> Example:
        """Builds an example without padding."""
        return {
            "row": np.int32(row),
            "tokens": tokens,
            "token_types": token_types,
            "segment_ids": np.ones(tokens.shape, np.int32),
            **more,
        }


def filled(value: Any) -> bool:
    """Whether a column of a row has a value."""
    return value is not None and not (isinstance(value, str) and not value.strip())


def number(values: Row, name: str) -> float:
    """Reads the number in the column that `config.task.label` names.

    Raises:
      BadRowError: the value is missing, not a number, or not finite.
    """
    raw = column(values, name, "label")
    try:
        found = float(raw)
    except (TypeError, ValueError):
        raise BadRowError(f"no number in column '{name}' ('{raw}')") from None
    if not np.isfinite(found):
        raise BadRowError(f"no finite number in column '{name}' ('{raw}')")
    return found


def by_count(values: Sequence[str]) -> tuple[str, ...]:
    """Returns the distinct values, most frequent first; ties are sorted by name."""
    counts = collections.Counter(values)
    return tuple(sorted(counts, key=lambda value: (-counts[value], value)))
