"""Multiple choice: selects the text that fits a context, as in SWAG (BERT §4.4, GPT-1 §3.3)."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import softmax

from lmjax.configuration import Interval
from lmjax.data import batching, docstrings
from lmjax.data.rows import BadRowError, Notes, Row, column
from lmjax.data.tokenizers import Tokenizer
from lmjax.models import heads
from lmjax.nn.dropout import Seeds
from lmjax.nn.layers import score_targets
from lmjax.objectives.base import Batch, Scored, apply, weighted_sum
from lmjax.tasks.base import Example, Outputs, Scores, Task, by_count
from lmjax.tasks.metrics import normalise_answer

_WORST = 10
_CHOICE = 64  # dropout: the first of the choices' salts
_NEVER = -1e30  # the logit of missing choices


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class MultipleChoice(Task):
    """Scores each choice joined with the context, with a softmax over the choices.

    Attributes:
      context, choices, label: column names of a text, a list of texts, and the index of the
        correct choice, from 0.
      most_choices: the most choices of a row; 0 = the maximum over the training rows.
    """

    head: ClassVar[heads.Task] = "multiple_choice"
    headline: ClassVar[str] = "choices"
    columns: ClassVar[Mapping[str, str]] = {
        "context": "context",
        "choices": "choices",
        "label": "gold",
    }

    context: str = "context"
    choices: str = "choices"
    label: str = "label"
    most_choices: Annotated[int, Interval("[0, 10000]")] = 0

    def parse_inputs(self, values: Row) -> Row:
        context = column(values, self.context, "context")
        choices = column(values, self.choices, "choices")
        if not isinstance(context, str) or not context.strip():
            raise BadRowError("empty context")
        if not isinstance(choices, list) or not all(isinstance(c, str) for c in choices):
            raise BadRowError(f"no list of texts in column '{self.choices}'")
        if len(choices) < 2 or not all(choice.strip() for choice in choices):
            raise BadRowError("an empty choice" if len(choices) > 1 else "fewer than two choices")
        return {"context": context, "choices": choices}

    def parse_gold(self, values: Row, row: Row) -> Row:
        label, count = column(values, self.label, "label"), len(row["choices"])
        try:
            gold = int(label)
        except (TypeError, ValueError):
            raise BadRowError(f"no number in column '{self.label}' ('{label}')") from None
        if not 0 <= gold < count:
            raise BadRowError(f"label {gold} is out of range for {count} choices, from 0")
        return {"gold": gold}

    def embedded(self, split: str, cache_dir: str) -> Iterator[Row]:
        for row in docstrings.description_rows(split, cache_dir):
            yield {"context": row["context"], "choices": row["choices"], "gold": row["label"]}

    def texts(self, row: Row) -> Iterator[str]:
        yield row["context"]
        yield from row["choices"]

    def bind(self, rows: Sequence[Row]) -> Task:
        most = self.most_choices or max(len(row["choices"]) for row in rows)
        return dataclasses.replace(self, most_choices=most)

    def check(self, row: Row) -> None:
        if 0 < self.most_choices < len(row["choices"]):
            raise BadRowError(
                f"{len(row['choices'])} choices, but training rows have at most"
                f" {self.most_choices} (config.task.most_choices)"
            )

    def encode(
        self, rows: Sequence[Row], tokenizer: Tokenizer, notes: Notes, training: bool
    ) -> list[Example]:
        del training
        form = self.form
        contexts = tokenizer.encode_batch([row["context"] for row in rows])
        choices = tokenizer.encode_batch([choice for row in rows for choice in row["choices"]])
        most = self.most_choices or max((len(row["choices"]) for row in rows), default=0)
        examples, place = [], 0
        for i, row in enumerate(rows):
            count = len(row["choices"])
            joined, any_cut = [], False
            for choice in choices[place : place + count]:
                first, second, cut = form.cut(contexts[i], choice, self.length)
                joined.append(form.join(first, second))
                any_cut |= cut
            place += count
            notes.add(f"cut to {self.length} tokens", count=int(any_cut))
            stacked = functools.partial(batching.stack, rows=most, left=form.left_padded)
            example = self.example(
                i,
                stacked([j.tokens for j in joined], fill=self.vocabulary.pad),
                stacked([j.token_types for j in joined]),
                offered=(np.arange(most) < count).astype(np.int32),
                gold=np.int32(row.get("gold", 0)),
            )
            ones = [np.ones(len(j.tokens), np.int32) for j in joined]
            examples.append({**example, "segment_ids": stacked(ones)})
        return examples

    def forward(self, params: Any, batch: Batch, seeds: Seeds | None) -> Outputs:
        rows, choices = batch["tokens"].shape[:2]
        if seeds is not None:
            seeds = seeds.of_parts(_CHOICE, choices)
        logits: jax.Array = apply(self.network, params, *self.inputs(batch), seeds)
        offered = batch["offered"] > 0
        return {"logits": jnp.where(offered, logits.reshape(rows, choices), _NEVER)}

    def forward_flops(self, length: int) -> float | None:
        flops = super().forward_flops(length)
        return None if flops is None else self.most_choices * flops

    def compute_loss(self, outputs: Outputs, batch: Batch) -> Scored:
        losses, hits = score_targets(outputs["logits"], batch["gold"])
        terms = {"choices": weighted_sum(losses, batch["weight"])}
        return Scored(terms, {"hits": weighted_sum(hits, batch["weight"])})

    def predict(
        self,
        rows: Sequence[Row],
        examples: Sequence[Example],
        outputs: Sequence[Outputs],
        whole: bool = True,
    ) -> list[Row]:
        predictions = []
        for row, output in zip(rows, outputs, strict=True):
            shares = softmax(output["logits"].astype(np.float64))
            best = int(shares.argmax())
            predictions.append(row | {"prediction": best, "confidence": float(shares[best])})
        return predictions

    def scores(self, predictions: Sequence[Row]) -> Scores:
        return {"accuracy": float(np.mean([p["gold"] == p["prediction"] for p in predictions]))}

    def baselines(self, train: Sequence[Row], rows: Sequence[Row]) -> dict[str, Scores]:
        usual = int(by_count([str(row["gold"]) for row in train])[0])
        rules = {
            f"the most frequent label ({usual})": lambda row: usual,
            "most words of the context": _overlapping,
        }
        return {
            name: self.scores([row | {"prediction": rule(row)} for row in rows])
            for name, rule in rules.items()
        }

    def report(self, predictions: Sequence[Row]) -> list[str]:
        wrong = [p for p in predictions if p["gold"] != p["prediction"]]
        wrong.sort(key=lambda p: -p["confidence"])
        lines = [f"## The most confident of {len(wrong)} mistakes", ""]
        for p in wrong[:_WORST]:
            chosen, gold = (" ".join(p["choices"][p[k]].split()) for k in ("prediction", "gold"))
            context = " ".join(p["context"].split())
            lines.append(f"- {context} **{chosen}** ({p['confidence']:.2f}), not **{gold}**")
        return lines


def _overlapping(row: Row) -> int:
    """Returns the choice with the largest share of words that occur in the context."""
    context = set(normalise_answer(row["context"]).split())
    words = [set(normalise_answer(choice).split()) for choice in row["choices"]]
    return int(np.argmax([len(context & w) / max(len(w), 1) for w in words]))
