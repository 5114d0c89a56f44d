"""What a task is: rows to examples, a head with its loss, and a score; one file each.

A task is an objective, so that the step, accumulation, the mesh, checkpoints and dropout are
those of pretraining.
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
# What becomes of the gold of a row: training needs it; where it is optional, it is read if it is
# there; an ignored one is not looked at.
Gold = Literal["required", "optional", "ignored"]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Task(Objective):
    """Base of all tasks: a frozen dataclass whose fields are `config.task`.

    Attributes:
      head: which of the heads of `lmjax.models.heads`. A task with a head of its own overrides
        `network` by a `Headed` that has it.
      per_token: arrays of an example with an entry a token, along the last axis, and what
        fills them up; 'tokens' is filled with the padding token.
      token_outputs: of what `forward` gives, the arrays with an axis of tokens, the first one
        behind the batch.
      columns: the fields that name a column, with what a parsed row calls its value.
      reads: the parsed row's name of the one text that a plain string stands for.
      ranks_rows: whether `predict` compares the rows with each other.
      added_tokens: special tokens that its examples have beside those of the tokenizer.
      length: longest input in tokens, special ones included.
      head_dropout: in the head; where a family's head has none (GPT), it has none.
      freeze: 'trunk' trains the head alone (a linear probe); '' trains all.
      adapter: trains low-rank matrices beside the kernels, and the head.
      labels: the classes, in the order of their ids; () takes those of the training rows.
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
            raise ConfigError("freeze: an adapter freezes the trunk by itself; set it to ''")
        longest = getattr(self.model, "max_length", None)
        if longest is not None and self.length > longest:
            raise ConfigError(
                f"length: {self.length} is longer than the model's position table of {longest};"
                " shorten it"
            )

    # What a task says of its data.

    def parse(self, values: Row, gold: Gold = "required") -> Row | list[Row | BadRowError]:
        """A row that the task reads, made of columns; the truth is under 'gold'.

        Where the gold is not required, a column may also have the name that the parsed row
        gives it.

        Returns:
          One row, or several where the source nests them, each of which may be a BadRowError.

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
        """Columns, with what a parsed row calls their values."""
        named = {getattr(self, field): name for field, name in self.columns.items()}
        return {column: name for column, name in named.items() if column}

    def parse_inputs(self, values: Row) -> Row:
        """What the model reads of a row. Raises BadRowError."""
        raise NotImplementedError

    def parse_gold(self, values: Row, row: Row) -> Row:
        """{'gold': the truth}, and whatever else training reads. Raises BadRowError.

        Args:
          values: the columns.
          row: what `parse_inputs` made of them.
        """
        raise NotImplementedError

    def has_gold(self, values: Row) -> bool:
        """Whether the columns hold a truth; an empty cell of a table is none."""
        return any(filled(values.get(c)) for c, name in self.names.items() if name == "gold")

    def embedded(self, split: str, cache_dir: str) -> Iterator[Row]:
        """Rows made of docstrings, as `parse` gives them, where no files are given."""
        del split, cache_dir
        raise ConfigError(
            f"config.data.train: docstrings hold no rows for {type(self).__name__}; give a file"
        )

    def texts(self, row: Row) -> Iterator[str]:
        """What a tokenizer would be trained on."""
        raise NotImplementedError

    def check_metrics(self) -> None:
        """Raises ConfigError where a package that `scores` needs is not installed."""

    def bind(self, rows: Sequence[Row]) -> "Task":
        """The task with what it must know of all its rows for training, such as the labels."""
        return self

    def fit(self, rows: Sequence[Row]) -> "Task":
        """The task with what it measures on the rows that are drawn for training."""
        return self

    @property
    def tunes(self) -> bool:
        """Whether something is chosen on the validation rows after training."""
        return False

    def tune(self, predictions: Sequence[Row]) -> tuple["Task", Scores]:
        """The task with what is chosen, and the scores that it was chosen by.

        Args:
          predictions: of the validation rows.
        """
        raise NotImplementedError

    def check(self, row: Row) -> None:
        """Raises BadRowError for a row that does not fit the training rows."""

    def encode(
        self, rows: Sequence[Row], tokenizer: Tokenizer, notes: Notes, training: bool
    ) -> list[Example]:
        """Examples, with the index of their row under 'row'.

        Rows may come without gold; what the loss reads of it is then arbitrary.

        Args:
          notes: takes what was cut, split or left out.
          training: whether they are to be learnt from.
        """
        raise NotImplementedError

    # What it learns.

    @property
    def compares_rows(self) -> bool:
        """Whether the loss of a row depends on the others of its batch."""
        return False

    @property
    def class_names(self) -> tuple[str, ...]:
        """The labels that a saved model is to know; () where they name no classes."""
        return self.labels if self.head.endswith("classification") else ()

    @property
    def form(self) -> InputFormat:
        return InputFormat(self.model, self.vocabulary)

    @property
    def network(self) -> Network:
        if self.head not in typing.get_args(heads.Task):
            known = ", ".join(typing.get_args(heads.Task))
            raise ConfigError(
                f"task: {type(self).__name__} has the head '{self.head}', which is none of {known};"
                " override its property `network`"
            )
        head = typing.cast(heads.Task, self.head)
        return self.model.headed(head, len(self.labels), self.head_dropout)

    @property
    def saved_network(self) -> Network:
        """The network as others are to read it; its parameters are those of `network`."""
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
        """The network's parameters, with adapters added to the kernels that they adapt."""
        return merge(params, self.adapter.scale)

    def fresh(self, key: jax.Array, batch: Batch) -> Any:
        """The network's random parameters."""
        return self.network.init(key, *self.inputs(batch))["params"]

    def loss(self, params: Any, batch: Batch, mems: Any, seeds: Seeds | None) -> Scored:
        def stopped(names: tuple[str, ...], leaf: jax.Array) -> jax.Array:
            # Where nothing is trained below, nothing is computed backwards there.
            return leaf if self.trainable(names) else jax.lax.stop_gradient(leaf)

        params = map_named(stopped, params)
        return self.compute_loss(self.forward(self.merged(params), batch, seeds), batch)

    def forward(self, params: Any, batch: Batch, seeds: Seeds | None) -> Outputs:
        """'logits' of the head, and whatever else `compute_loss` or `predict` reads."""
        return {"logits": apply(self.network, params, *self.inputs(batch), seeds)}

    def compute_loss(self, outputs: Outputs, batch: Batch) -> Scored:
        """The loss of outputs; `batch['weight']` [batch] is 0 for rows that fill it up."""
        raise NotImplementedError

    def inputs(self, batch: Batch, mems: Any = None) -> tuple[TextInputs]:
        """The network's argument; of an example with several texts each is a row."""
        names = ("tokens", "token_types", "segment_ids")
        tokens, types, segments = (batch[n].reshape(-1, batch[n].shape[-1]) for n in names)
        return (self.model.inputs(tokens, types, segments > 0),)

    def forward_flops(self, length: int) -> float | None:
        return self.model.forward_flops(length)

    # What is made of it.

    def write(
        self, params: Any, tokenizer: Tokenizer, examples: Sequence[Example]
    ) -> list[Outputs]:
        """What `predict` reads beside the outputs and takes more than one pass: generated text."""
        del params, tokenizer
        return [{} for _ in examples]

    def predict(
        self,
        rows: Sequence[Row],
        examples: Sequence[Example],
        outputs: Sequence[Outputs],
        whole: bool = True,
    ) -> list[Row]:
        """One JSON object a row: what was read, 'prediction' and 'confidence'.

        Args:
          rows: with 'gold' or without.
          outputs: of each example, without padding, and what `write` gave.
          whole: whether these are all rows that there are, so that they can be compared with each
            other (`ranks_rows`).
        """
        raise NotImplementedError

    def scored(self, prediction: Row) -> bool:
        """Whether a prediction is one that `scores` can judge."""
        return "gold" in prediction

    def scores(self, predictions: Sequence[Row]) -> Scores:
        """The scores, the one that reports lead with first."""
        raise NotImplementedError

    def baselines(self, train: Sequence[Row], rows: Sequence[Row]) -> dict[str, Scores]:
        """What simple rules score on the same rows."""
        del train, rows
        return {}

    def report(self, predictions: Sequence[Row]) -> list[str]:
        """Lines of markdown: where it goes wrong."""
        del predictions
        return []

    def unpadded(self, example: Example, outputs: Outputs) -> Outputs:
        """Outputs of an example, with tokens of its own alone."""
        count = example["tokens"].shape[-1]
        own = slice(-count, None) if self.form.left_padded else slice(count)
        return {n: x[own] if n in self.token_outputs else x for n, x in outputs.items()}

    def example(
        self, row: int, tokens: np.ndarray, token_types: np.ndarray, **more: Any
    ) -> Example:
        """An example; all of its tokens are real."""
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
    """The number in the column that `config.task.label` names.

    Raises:
      BadRowError: there is none, or it is not finite.
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
    """The different values, the most frequent first; equal ones by name."""
    counts = collections.Counter(values)
    return tuple(sorted(counts, key=lambda value: (-counts[value], value)))
