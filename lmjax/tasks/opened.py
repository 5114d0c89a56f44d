"""A finished fine-tuning run as what it is for: rows in, predictions out."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from lmjax.configuration import build, build_typed, opening
from lmjax.convert.huggingface import read_json
from lmjax.convert.runs import load
from lmjax.data.rows import Notes, Row, RowsConfig, read_split
from lmjax.data.tokenizers import Tokenizer
from lmjax.errors import ConfigError
from lmjax.nn.lora import LoraConfig
from lmjax.tasks.base import Task
from lmjax.tasks.batches import Collator
from lmjax.tasks.reading import Reader
from lmjax.training.mesh import MeshConfig, make_mesh
from lmjax.training.sharding import shardings

_BATCH = 32


@dataclasses.dataclass(frozen=True, eq=False)
class Opened:
    """A task with what was learnt.

    Attributes:
      params: of the network, adapters merged.
      data: that it was learnt from.
    """

    task: Task
    params: Any
    tokenizer: Tokenizer
    data: RowsConfig

    def predict(self, rows: Sequence[Row]) -> list[Row]:
        """As the run's predictions.jsonl, for rows as the task's `parse` gives them."""
        return predict(self.task, self.params, self.tokenizer, rows)

    def rows(self, split: str) -> list[Row]:
        """The usable rows of a split of its data."""
        return read_split(self.data, split, self.task.parse, self.task.embedded, Notes())

    def held_out(self) -> list[Row]:
        """The rows of test, where there are some, else of validation."""
        return self.rows("test") or self.rows("validation")


def open_run(path: str | pathlib.Path, kind: type[Task], flag: str) -> Opened:
    """Opens the --workdir of a finished run of `experiments.finetune`.

    Args:
      kind: the task that it is to be.
      flag: that named it, for messages.

    Raises:
      ConfigError: as `lmjax.load`, or it is a run of another task.
    """
    pretrained = load(path)
    values = read_json(pathlib.Path(path) / "config.json")
    if "task" not in values:
        raise ConfigError(f"{flag}: '{path}' is no run of experiments.finetune")
    network: Any = pretrained.network
    tokenizer = pretrained.tokenizer
    assert tokenizer is not None
    with opening():
        task = build_typed(
            values["task"],
            f"{path}/config.json: task",
            Task,
            model=getattr(network, "encoder", network).config,
            vocabulary=tokenizer.vocabulary(np.zeros(tokenizer.size)),
        )
    if not isinstance(task, kind):
        raise ConfigError(
            f"{flag}: '{path}' is a run of {type(task).__name__}, not {kind.__name__}"
        )
    labels = pretrained.labels or task.labels
    task = dataclasses.replace(task, labels=labels, adapter=LoraConfig())
    if getattr(task.network, "task", "") != getattr(network, "task", ""):
        raise ConfigError(f"{flag}: '{path}': config.json and network.json are of different tasks")
    data = build(RowsConfig, values.get("data", {}), f"{path}/config.json: data")
    return Opened(task, pretrained.params, tokenizer, data)


def predict(task: Task, params: Any, tokenizer: Tokenizer, rows: Sequence[Row]) -> list[Row]:
    """The task's predictions, on one device."""
    if not rows:
        return []
    mesh = make_mesh(MeshConfig(data=1))
    with jax.set_mesh(mesh):
        placed = shardings(params, mesh)
        reader = Reader(task, Collator(task, _BATCH), mesh, placed, tokenizer)
        examples = task.encode(rows, tokenizer, Notes(), False)
        return reader.predict(jax.device_put(params, placed), rows, examples)[0]
