"""A task written outside of the package, with a head of its own: several labels of a text."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from lmjax.data.rows import BadRowError, Notes, Row, column
from lmjax.data.tokenizers import Tokenizer
from lmjax.models.heads import Headed
from lmjax.nn.dropout import Seeds
from lmjax.nn.layers import Dense
from lmjax.nn.trunk import TransformerConfig
from lmjax.objectives.base import Batch, Scored, weighted_sum
from lmjax.tasks.base import Example, Outputs, Scores, Task


class LargestHead(nn.Module):
    """Logits [batch, classes] of the largest of each feature over the real tokens."""

    config: TransformerConfig
    classes: int

    @nn.compact
    def __call__(self, hidden: jax.Array, real: jax.Array, seeds: Seeds | None) -> jax.Array:
        largest = jnp.where(real[..., None], hidden, -jnp.inf).max(1)
        return Dense(self.classes, self.config.initializer(), name="output")(largest)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class MultiLabel(Task):
    """Which of the labels a text has, by a sigmoid each.

    Attributes:
      text, tags: names of the columns; tags are a list of labels.
    """

    head: ClassVar[str] = "multi_label"
    headline: ClassVar[str] = "tags"
    columns: ClassVar[Mapping[str, str]] = {"text": "text", "tags": "gold"}

    text: str = "text"
    tags: str = "tags"

    @property
    def network(self) -> Headed:
        head = LargestHead(self.model.trunk, len(self.labels))
        return Headed(self.model.encoder(), head, self.head)

    def parse_inputs(self, values: Row) -> Row:
        text = column(values, self.text, "text")
        if not isinstance(text, str) or not text.strip():
            raise BadRowError(f"no text in column '{self.text}'")
        return {"text": text}

    def parse_gold(self, values: Row, row: Row) -> Row:
        return {"gold": list(column(values, self.tags, "tags"))}

    def texts(self, row: Row) -> Any:
        yield row["text"]

    def bind(self, rows: Sequence[Row]) -> Task:
        labels = tuple(sorted({tag for row in rows for tag in row["gold"]}))
        return dataclasses.replace(self, labels=labels)

    def encode(
        self, rows: Sequence[Row], tokenizer: Tokenizer, notes: Notes, training: bool
    ) -> list[Example]:
        examples = []
        for i, ids in enumerate(tokenizer.encode_batch([row["text"] for row in rows])):
            kept, _, cut = self.form.cut(ids, None, self.length)
            notes.add(f"cut to {self.length} tokens", count=int(cut))
            joined = self.form.join(kept)
            gold = np.isin(self.labels, rows[i].get("gold", [])).astype(np.float32)
            examples.append(self.example(i, joined.tokens, joined.token_types, gold=gold))
        return examples

    def compute_loss(self, outputs: Outputs, batch: Batch) -> Scored:
        losses = optax.sigmoid_binary_cross_entropy(outputs["logits"], batch["gold"]).mean(-1)
        return Scored({"tags": weighted_sum(losses, batch["weight"])}, {})

    def predict(
        self,
        rows: Sequence[Row],
        examples: Sequence[Example],
        outputs: Sequence[Outputs],
        whole: bool = True,
    ) -> list[Row]:
        told = [np.flatnonzero(output["logits"] > 0) for output in outputs]
        return [
            row | {"prediction": [self.labels[i] for i in found]}
            for row, found in zip(rows, told, strict=True)
        ]

    def scores(self, predictions: Sequence[Row]) -> Scores:
        hits = [set(p["gold"]) == set(p["prediction"]) for p in predictions]
        return {"exact": float(np.mean(hits))}

    def baselines(self, train: Sequence[Row], rows: Sequence[Row]) -> dict[str, Scores]:
        return {"none": self.scores([row | {"prediction": []} for row in rows])}
