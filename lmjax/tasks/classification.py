"""Classification and regression of single texts and text pairs, as in GLUE."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import softmax

from lmjax.configuration import Finite, Interval, Weight
from lmjax.data import docstrings
from lmjax.data.rows import BadRowError, Notes, Row, column
from lmjax.data.tokenizers import Tokenizer
from lmjax.errors import ConfigError
from lmjax.models import heads
from lmjax.models.heads import in_unit
from lmjax.models.network import Network
from lmjax.nn.dropout import Seeds
from lmjax.nn.layers import cross_entropy, score_targets
from lmjax.objectives.base import Batch, Scored, apply, weighted_sum
from lmjax.tables import markdown_table
from lmjax.tasks.base import Example, Outputs, Scores, Task, by_count, number
from lmjax.tasks.baselines import classes_by_words
from lmjax.tasks.metrics import class_scores, confusion, correlations

_WORST = 10  # number of mistakes in a report
# Scales the initial output layer of a regression. At 1, training starts so far from the mean that
# a few dozen steps may not even reach the baseline of predicting it; at 0, training is slower.
_FIRST = 0.2


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Classes(Task):
    """Assigns one class to each row by softmax; 'gold' is the name of the correct class."""

    headline: ClassVar[str] = "classes"

    def bind(self, rows: Sequence[Row]) -> Task:
        labels = self.labels or tuple(sorted({row["gold"] for row in rows}))
        if len(labels) < 2:
            raise ConfigError(f"config.task.label: only one class, {labels[0]!r}; give two or more")
        return dataclasses.replace(self, labels=labels)

    def check(self, row: Row) -> None:
        if "gold" in row and row["gold"] not in self.labels:
            shown = ", ".join(self.labels[:8]) + (", ..." if len(self.labels) > 8 else "")
            raise BadRowError(f"label '{row['gold']}' is not in the set (known: {shown})")

    def target(self, row: Row) -> Any:
        """Returns the target of the loss; the first class if the row has no label."""
        return np.int32(self.labels.index(row["gold"]) if "gold" in row else 0)

    def compute_loss(self, outputs: Outputs, batch: Batch) -> Scored:
        losses, hits = score_targets(outputs["logits"], batch["gold"])
        weight = batch["weight"]
        terms = {"classes": weighted_sum(losses, weight)}
        return Scored(terms, {"hits": weighted_sum(hits, weight)})

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
            told = row | {"prediction": self.labels[best], "confidence": float(shares[best])}
            if "gold" in row:
                told["gold_probability"] = float(shares[self.labels.index(row["gold"])])
            predictions.append(told)
        return predictions

    def scores(self, predictions: Sequence[Row]) -> Scores:
        gold = [p["gold"] for p in predictions]
        return class_scores(confusion(gold, [p["prediction"] for p in predictions], self.labels))

    def by_words(
        self, name: str, train: Sequence[Row], rows: Sequence[Row], bag: Callable[[Row], str]
    ) -> dict[str, Scores]:
        """Returns {name: scores of a bag-of-words baseline}; {} without scikit-learn."""
        gold = [row["gold"] for row in train]
        chosen = classes_by_words([bag(r) for r in train], gold, [bag(r) for r in rows])
        if chosen is None:
            return {}
        guesses = [row | {"prediction": c} for row, c in zip(rows, chosen, strict=True)]
        return {name: self.scores(guesses)}

    def report(self, predictions: Sequence[Row]) -> list[str]:
        gold = [p["gold"] for p in predictions]
        table = confusion(gold, [p["prediction"] for p in predictions], self.labels)
        lines = ["## Confusion", "", "Rows are true classes, columns are predictions."]
        used = [i for i in range(len(self.labels)) if table[i].any() or table[:, i].any()]
        if len(used) > 20:
            pairs = [(int(table[i, j]), i, j) for i in used for j in used if i != j and table[i, j]]
            lines += ["", "The most frequent confusions:", ""]
            lines += [
                f"- {n} times {self.labels[i]} as {self.labels[j]}"
                for n, i, j in sorted(pairs, reverse=True)[:20]
            ]
        else:
            rows = [[self.labels[i], *(str(table[i, j]) for j in used)] for i in used]
            lines += ["", *markdown_table(["", *(self.labels[i] for i in used)], rows)]
        wrong = [p for p in predictions if p["gold"] != p["prediction"]]
        wrong.sort(key=lambda p: -p["confidence"])
        lines += ["", f"## The most confident of {len(wrong)} mistakes", ""]
        return lines + [
            f"- {p['gold']} taken for {p['prediction']} ({p['confidence']:.2f}): {shown(p)}"
            for p in wrong[:_WORST]
        ]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Classification(Classes):
    """Classifies a text, or a pair of joined texts, with a head on one token.

    Attributes:
      text, pair, label: column names; there is no second text if `pair` is ''.
      lm_weight: weight of an auxiliary language-model loss on the same tokens, GPT only (GPT-1
        §3.2: 0.5).
      pydocs: the classes of `config.data.train='pydocs'`: the package that a docstring documents,
        the intent of a question about a parameter (the subpackage that it is about), or the mood
        of a function's summary (descriptive or imperative).
    """

    head: ClassVar[heads.Task] = "sequence_classification"
    columns: ClassVar[Mapping[str, str]] = {"text": "text", "pair": "pair", "label": "gold"}

    text: str = "text"
    pair: str = ""
    label: str = "label"
    lm_weight: Weight = 0.0
    pydocs: Literal["packages", "intents", "moods"] = "packages"

    def __post_init__(self) -> None:
        super().__post_init__()
        tied = getattr(self.model, "tie_embeddings", True)
        if self.lm_weight and not (self.model.causal and tied):
            raise ConfigError(
                "lm_weight: the auxiliary loss needs a causal model with tied embeddings; use a"
                " GPT with tied embeddings, or set it to 0"
            )

    @property
    def weights(self) -> dict[str, float]:
        return {"lm": self.lm_weight}

    def parse_gold(self, values: Row, row: Row) -> Row:
        gold = _text(column(values, self.label, "label"), self.label).strip()
        if not gold:
            raise BadRowError(f"no label in column '{self.label}'")
        return {"gold": gold}

    def parse_inputs(self, values: Row) -> Row:
        row = {"text": _text(column(values, self.text, "text"), self.text)}
        if self.pair:
            row["pair"] = _text(column(values, self.pair, "pair"), self.pair)
        for name, text in row.items():
            if not text.strip():
                raise BadRowError(f"empty {name}")
        return row

    def embedded(self, split: str, cache_dir: str) -> Iterator[Row]:
        read = {
            "packages": docstrings.package_rows,
            "intents": docstrings.intent_rows,
            "moods": docstrings.mood_rows,
        }[self.pydocs]
        for row in read(split, cache_dir):
            twin = {"other": row["other"]} if self.pydocs == "moods" else {}
            yield {"text": row["text"], "gold": row["label"], **twin}

    def texts(self, row: Row) -> Iterator[str]:
        yield row["text"]
        if "pair" in row:
            yield row["pair"]

    def encode(
        self, rows: Sequence[Row], tokenizer: Tokenizer, notes: Notes, training: bool
    ) -> list[Example]:
        del training
        form = self.form
        firsts = tokenizer.encode_batch([row["text"] for row in rows])
        paired = bool(rows) and "pair" in rows[0]
        seconds = tokenizer.encode_batch([row["pair"] for row in rows]) if paired else []
        examples = []
        for i, row in enumerate(rows):
            first, second, cut = form.cut(firsts[i], seconds[i] if paired else None, self.length)
            notes.add(f"cut to {self.length} tokens", count=int(cut))
            joined = form.join(first, second)
            examples.append(
                self.example(i, joined.tokens, joined.token_types, gold=self.target(row))
            )
        return examples

    def forward(self, params: Any, batch: Batch, seeds: Seeds | None) -> Outputs:
        if not self.lm_weight:
            return super().forward(params, batch, seeds)
        logits, next_tokens = apply(
            self.network, params, *self.inputs(batch), seeds, method="with_tokens"
        )
        real = (batch["segment_ids"][:, 1:] > 0).astype(jnp.float32)
        losses = cross_entropy(next_tokens[:, :-1], batch["tokens"][:, 1:]) * real
        return {"logits": logits, "lm": losses.sum(1), "lm_tokens": real.sum(1)}

    def compute_loss(self, outputs: Outputs, batch: Batch) -> Scored:
        losses, hits = score_targets(outputs["logits"], batch["gold"])
        weight = batch["weight"]
        terms = {"classes": weighted_sum(losses, weight)} | self._lm_term(outputs, weight)
        return Scored(terms, {"hits": weighted_sum(hits, weight)})

    def _lm_term(self, outputs: Outputs, weight: jax.Array) -> dict[str, Any]:
        if "lm" not in outputs:
            return {}
        return {"lm": ((outputs["lm"] * weight).sum(), (outputs["lm_tokens"] * weight).sum())}

    def baselines(self, train: Sequence[Row], rows: Sequence[Row]) -> dict[str, Scores]:
        majority = by_count([row["gold"] for row in train])[0]
        found = {
            f"majority ({majority})": self.scores([r | {"prediction": majority} for r in rows])
        }
        # Words of the two texts are separate features: it matters which text contains a word.
        return found | self.by_words("TF-IDF + logistic regression", train, rows, _bag)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Regression(Classification):
    """Predicts a number for a text or a pair, with squared error as the loss.

    The head outputs z, initially near 0, and the prediction is mean + scale * z. Training thus
    starts at the mean of the training rows and does not depend on the unit of the labels. The
    loss is the squared error of z; scores and saved models use the unit of the labels.

    Attributes:
      mean, scale: None uses the mean and the standard deviation of the training rows; 0 and 1
        learn the labels unchanged (BERT's setting for STS-B).
    """

    headline: ClassVar[str] = "standardised_error"

    mean: Finite | None = None
    scale: Annotated[float, Interval("(0, inf)")] | None = None

    def parse_gold(self, values: Row, row: Row) -> Row:
        return {"gold": number(values, self.label)}

    def embedded(self, split: str, cache_dir: str) -> Iterator[Row]:
        raise ConfigError("config.data.train: docstrings have no numbers to learn; give a file")

    def bind(self, rows: Sequence[Row]) -> Task:
        return dataclasses.replace(self, labels=("score",))  # names the single output

    def fit(self, rows: Sequence[Row]) -> Task:
        gold = np.array([row["gold"] for row in rows], np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            mean, scale = float(gold.mean()), float(gold.std())
        if self.scale is None and scale == 0:
            raise ConfigError(
                f"config.task.label: all {len(rows)} training rows have the number {mean:g};"
                " give a column with different numbers"
            )
        mean = self.mean if self.mean is not None else mean
        scale = self.scale if self.scale is not None else scale
        low, high = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
        if not (abs(mean) < high and low < scale < high):
            raise ConfigError(
                f"config.task.label: numbers with a mean of {mean:g} and a standard deviation of"
                f" {scale:g} do not fit into float32; rescale the column"
            )
        return dataclasses.replace(self, mean=mean, scale=scale)

    def check(self, row: Row) -> None:
        with np.errstate(over="ignore"):
            if not np.isfinite(self.target(row)):
                raise BadRowError(f"{row['gold']:g} is too far from the mean of the training rows")

    @property
    def saved_network(self) -> Network:
        return in_unit(self.network, (self._mean, self._scale))

    @property
    def _mean(self) -> float:
        return 0.0 if self.mean is None else self.mean

    @property
    def _scale(self) -> float:
        return 1.0 if self.scale is None else self.scale

    def fresh(self, key: jax.Array, batch: Batch) -> Any:
        params = super().fresh(key, batch)
        output = jax.tree.map(lambda leaf: _FIRST * leaf, params["head"]["output"])
        return {**params, "head": {**params["head"], "output": output}}

    def target(self, row: Row) -> Any:
        return np.float32((row["gold"] - self._mean) / self._scale if "gold" in row else 0.0)

    def compute_loss(self, outputs: Outputs, batch: Batch) -> Scored:
        errors = jnp.square(outputs["logits"][:, 0].astype(jnp.float32) - batch["gold"])
        weight = batch["weight"]
        term = {"standardised_error": weighted_sum(errors, weight)}
        return Scored(term | self._lm_term(outputs, weight), {})

    def predict(
        self,
        rows: Sequence[Row],
        examples: Sequence[Example],
        outputs: Sequence[Outputs],
        whole: bool = True,
    ) -> list[Row]:
        return [
            row | {"prediction": self._mean + self._scale * float(output["logits"][0])}
            for row, output in zip(rows, outputs, strict=True)
        ]

    def scores(self, predictions: Sequence[Row]) -> Scores:
        gold, guesses = ([p[k] for p in predictions] for k in ("gold", "prediction"))
        error = float(np.mean(np.square(np.subtract(gold, guesses))))
        return {**correlations(gold, guesses), "squared_error": error}

    def baselines(self, train: Sequence[Row], rows: Sequence[Row]) -> dict[str, Scores]:
        mean = float(np.mean([row["gold"] for row in train]))
        found = {f"mean ({mean:.2f})": self.scores([r | {"prediction": mean} for r in rows])}
        if "pair" in rows[0]:
            guesses = [r | {"prediction": _overlap(r["text"], r["pair"])} for r in rows]
            overlap = self.scores(guesses)
            del overlap["squared_error"]  # the overlap does not use the scale of the labels
            found["share of words in common"] = overlap
        return found

    def report(self, predictions: Sequence[Row]) -> list[str]:
        order = sorted(predictions, key=lambda p: -abs(p["gold"] - p["prediction"]))
        return ["## The largest errors", ""] + [
            f"- {p['gold']:g} taken for {p['prediction']:.2f}: {shown(p)}" for p in order[:_WORST]
        ]


def _text(value: Any, name: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadRowError(f"no text in column '{name}' (a {type(value).__name__})")
    return str(value)


def _bag(row: Row) -> str:
    if "pair" not in row:
        return row["text"]
    return " ".join([*row["text"].split(), *(f"2:{w}" for w in row["pair"].split())])


def _overlap(first: str, second: str) -> float:
    a, b = ({w.strip(".,;:!?\"'").lower() for w in text.split()} for text in (first, second))
    return len(a & b) / max(len(a | b), 1)


def shown(row: Row, longest: int = 200) -> str:
    """Formats a row's text on one line."""
    text = " || ".join(" ".join(row[k].split()) for k in ("text", "pair") if k in row)
    return text if len(text) <= longest else text[: longest - 3] + "..."
