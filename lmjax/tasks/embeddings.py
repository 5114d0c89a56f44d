"""Sentence embeddings: texts with similar meanings get vectors with similar directions."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.configuration import Interval
from lmjax.data import batching, docstrings
from lmjax.data.rows import BadRowError, Notes, Row, column
from lmjax.data.tokenizers import Tokenizer
from lmjax.errors import ConfigError
from lmjax.extras import installed
from lmjax.models import heads
from lmjax.models.network import Network
from lmjax.nn.dropout import Seeds
from lmjax.nn.layers import score_targets
from lmjax.objectives.base import Batch, Scored, apply, weighted_sum
from lmjax.tasks.base import Example, Outputs, Scores, Task, number
from lmjax.tasks.input_format import InputFormat
from lmjax.tasks.metrics import correlations

_WORST = 10
_CHUNK = 1000  # rows whose similarities to all others are held in memory at once
_VIEW = 96  # dropout: the first of the two views' salts
_NEVER = -1e30  # the similarity to padding rows


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Embeddings(Task):
    """Encodes both texts of a row separately with one encoder and compares them by cosine.

    'contrastive' distinguishes the pair of a text from the pairs of all other rows of the batch:
    softmax over cosine / temperature (InfoNCE; Henderson et al. 2017, "multiple negatives").
    'simcse' encodes only `text`, twice with different dropout, and distinguishes its second view
    from the other rows (Gao et al. 2021, §3); it uses `pair` only for evaluation. Both losses
    depend on the batch: a larger batch is a harder task, and negatives come from all devices.
    Gradient accumulation would reduce the negatives, so it is an error. 'cosine' fits the cosine
    to `label` / `highest` by squared error (Reimers and Gurevych 2019, §3).

    Held-out rows with labels are scored by the correlation of cosine and label. Rows without
    labels are scored by how often the pair of a text is the most similar among all pairs.

    Attributes:
      text, pair, label: column names; there are no labels if `label` is ''.
      loss_form: one of the three losses.
      pooling: the mean of the tokens, or the token that the family's classifiers read.
      temperature: temperature of the softmax.
      highest: the label of texts with the same meaning.
    """

    head: ClassVar[heads.Task] = "mean_embedding"
    headline: ClassVar[str] = "similarity"
    columns: ClassVar[Mapping[str, str]] = {"text": "text", "pair": "pair", "label": "gold"}
    ranks_rows: ClassVar[bool] = True

    text: str = "text"
    pair: str = "pair"
    label: str = ""
    loss_form: Literal["contrastive", "simcse", "cosine"] = "contrastive"
    pooling: Literal["mean", "token"] = "mean"
    temperature: Annotated[float, Interval("[1e-4, 2**20]")] = 0.05
    highest: Annotated[float, Interval("[1e-9, 2**30]")] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.freeze:
            raise ConfigError("freeze: embeddings have no head to train; set it to ''")
        if self.loss_form == "cosine" and not self.label:
            raise ConfigError("label: empty, but 'cosine' fits a column of numbers; name one")
        trunk = self.model.trunk
        if self.loss_form == "simcse" and not (trunk.dropout or trunk.attention_dropout):
            raise ConfigError("loss_form: 'simcse' needs dropout; raise config.dropout")

    @property
    def network(self) -> Network:
        kind: heads.Task = "mean_embedding" if self.pooling == "mean" else "token_embedding"
        return self.model.headed(kind, 0, 0.0)

    @property
    def compares_rows(self) -> bool:
        return self.loss_form != "cosine"

    def parse_inputs(self, values: Row) -> Row:
        row: Row = {"text": column(values, self.text, "text")}
        if values.get(self.pair) is not None:
            row["pair"] = values[self.pair]
        for name, text in row.items():
            if not isinstance(text, str) or not text.strip():
                raise BadRowError(f"no text in column '{getattr(self, name)}'")
        return row

    def parse_gold(self, values: Row, row: Row) -> Row:
        # SimCSE's training rows may be single texts.
        if self.loss_form == "simcse" and "pair" not in row:
            return {"pair": row["text"]}
        column(values, self.pair, "pair")
        return {"gold": number(values, self.label)} if self.label else {}

    def embedded(self, split: str, cache_dir: str) -> Iterator[Row]:
        if self.label:
            raise ConfigError("config.task.label: docstrings have no numbers; set it to ''")
        yield from docstrings.summary_rows(split, cache_dir)

    def texts(self, row: Row) -> Iterator[str]:
        yield row["text"]
        yield row["pair"]

    def encode(
        self, rows: Sequence[Row], tokenizer: Tokenizer, notes: Notes, training: bool
    ) -> list[Example]:
        del training
        texts = [[row["text"]] for row in rows]
        if any("pair" in row for row in rows):  # a single text is its own pair
            texts = [[row["text"], row.get("pair", row["text"])] for row in rows]
        encoded = iter(tokenizer.encode_batch([text for own in texts for text in own]))
        examples = []
        for i, (row, own) in enumerate(zip(rows, texts, strict=True)):
            arrays, cut = _stacked([next(encoded) for _ in own], self.form, self.length)
            notes.add(f"cut to {self.length} tokens", count=int(cut))
            gold = np.float32(row.get("gold", 0.0))
            example = self.example(i, arrays["tokens"], arrays["token_types"], gold=gold)
            examples.append({**example, **arrays})
        return examples

    def forward(self, params: Any, batch: Batch, seeds: Seeds | None) -> Outputs:
        if seeds is not None:
            if self.loss_form == "simcse":
                names = ("tokens", "token_types", "segment_ids")
                batch = batch | {n: jnp.repeat(batch[n][:, :1], 2, axis=1) for n in names}
            seeds = seeds.of_parts(_VIEW, 2)
        vectors: jax.Array = apply(self.network, params, *self.inputs(batch), seeds)
        texts = batch["tokens"].shape[1]
        vectors = _normalised(vectors.reshape(-1, texts, vectors.shape[-1]).astype(jnp.float32))
        return {"first": vectors[:, 0], "second": vectors[:, -1]}

    def forward_flops(self, length: int) -> float | None:
        flops = super().forward_flops(length)
        return None if flops is None else 2 * flops

    def compute_loss(self, outputs: Outputs, batch: Batch) -> Scored:
        first, second, weight = outputs["first"], outputs["second"], batch["weight"]
        if self.loss_form == "cosine":
            errors = jnp.square((first * second).sum(-1) - batch["gold"] / self.highest)
            return Scored({"similarity": weighted_sum(errors, weight)}, {})
        logits = first @ second.T / self.temperature
        logits = jnp.where(weight > 0, logits, _NEVER)  # padding rows are not negatives
        losses, hits = score_targets(logits, jnp.arange(len(logits)))
        losses = jnp.where(weight > 0, losses, 0.0)
        return Scored(
            {"similarity": weighted_sum(losses, weight)}, {"hits": weighted_sum(hits, weight)}
        )

    def predict(
        self,
        rows: Sequence[Row],
        examples: Sequence[Example],
        outputs: Sequence[Outputs],
        whole: bool = True,
    ) -> list[Row]:
        """Predicts the cosine of pairs, with ranks if `whole`, and the vector of single texts."""
        if whole and all("pair" in row for row in rows):
            first, second = (np.stack([o[n] for o in outputs]) for n in ("first", "second"))
            return ranked(rows, first, second)
        return [
            row | {"prediction": float(output["first"] @ output["second"])}
            if "pair" in row
            else row | {"prediction": output["first"].tolist()}
            for row, output in zip(rows, outputs, strict=True)
        ]

    def scored(self, prediction: Row) -> bool:
        return ("gold" if self.label else "rank") in prediction

    def scores(self, predictions: Sequence[Row]) -> Scores:
        if all("gold" in p for p in predictions):
            gold, cosines = ([p[k] for p in predictions] for k in ("gold", "prediction"))
            found = correlations(gold, cosines)
            return {n: found[n] for n in ("spearman", "pearson")}
        ranks = np.array([p["rank"] for p in predictions])
        return {"accuracy@1": float(np.mean(ranks == 1)), "mrr": float(np.mean(1 / ranks))}

    def baselines(self, train: Sequence[Row], rows: Sequence[Row]) -> dict[str, Scores]:
        found = {}
        if not all("gold" in row for row in rows):
            # Expected scores of a rank drawn uniformly from 1 to n.
            chances = 1 / np.arange(1, len(rows) + 1)
            found["chance"] = {"accuracy@1": float(chances[-1]), "mrr": float(chances.mean())}
        if not installed("sklearn"):
            return found
        from sklearn.feature_extraction.text import TfidfVectorizer

        words = TfidfVectorizer(sublinear_tf=True)
        words.fit([text for row in train for text in self.texts(row)])
        first, second = (words.transform([row[n] for row in rows]) for n in ("text", "pair"))
        return {**found, "TF-IDF cosine": self.scores(ranked(rows, first, second))}

    def report(self, predictions: Sequence[Row]) -> list[str]:
        if all("gold" in p for p in predictions):
            places = [np.argsort(np.argsort([p[k] for p in predictions])) for k in _ORDERED]
            order = np.argsort(-np.abs(places[0] - places[1]), kind="stable")
            lines = ["## The largest differences in rank", ""]
            for i in order[:_WORST]:
                p = predictions[i]
                lines.append(f"- {p['gold']:g}, cosine {p['prediction']:.2f}: {_short(p['text'])}")
                lines.append(f"  - {_short(p['pair'])}")
            return lines
        wrong = sorted((p for p in predictions if p["rank"] > 1), key=lambda p: -p["rank"])
        lines = [f"## The worst of {len(wrong)} ranks above 1", ""]
        for p in wrong[:_WORST]:
            lines.append(f"- {_short(p['text'])}")
            lines.append(f"  - its pair, rank {p['rank']}: {_short(p['pair'])}")
            lines.append(f"  - most similar: {_short(p['found'])}")
        return lines


_ORDERED = ("gold", "prediction")


def ranked(rows: Sequence[Row], first: Any, second: Any) -> list[Row]:
    """Computes the cosine of each row's pair, and its rank among the pairs of all rows.

    Args:
      first, second: [rows, size] unit vectors of the texts and of their pairs, as NumPy or SciPy
        sparse arrays.

    Returns:
      The rows with 'prediction', the cosine; 'rank', 1 + the number of more similar pairs with
      another wording; and 'found', the most similar pair.
    """
    names: dict[str, int] = {}
    wording = np.array([names.setdefault(row["pair"], len(names)) for row in rows])
    predictions = []
    for start in range(0, len(rows), _CHUNK):
        cosines = first[start : start + _CHUNK] @ second.T
        cosines = cosines if isinstance(cosines, np.ndarray) else cosines.toarray()
        for i, line in enumerate(cosines, start=start):
            better = (line > line[i] + 1e-6) & (wording != wording[i])
            found = rows[int(line.argmax())]["pair"]
            # Half of the ties, e.g. texts without a common word, count as better.
            equal = (np.abs(line - line[i]) <= 1e-6) & (wording != wording[i])
            rank = 1 + int(better.sum()) + int(equal.sum() + 1) // 2
            row = rows[i] | {"prediction": float(line[i]), "rank": rank, "found": found}
            predictions.append(row)
    return predictions


def _stacked(
    encoded: Sequence[np.ndarray], form: InputFormat, length: int
) -> tuple[dict[str, np.ndarray], bool]:
    """Returns [texts, longest] model inputs of texts, and whether any text was truncated."""
    joined, any_cut = [], False
    for ids in encoded:
        kept, _, cut = form.cut(ids, None, length)
        joined.append(form.join(kept))
        any_cut |= cut
    columns = {
        "tokens": ([j.tokens for j in joined], form.vocabulary.pad),
        "token_types": ([j.token_types for j in joined], 0),
        "segment_ids": ([np.ones(len(j.tokens), np.int32) for j in joined], 0),
    }
    arrays = {
        name: batching.stack(parts, fill=fill, left=form.left_padded)
        for name, (parts, fill) in columns.items()
    }
    return arrays, any_cut


def _normalised(vectors: jax.Array) -> jax.Array:
    """Normalizes vectors to length 1; the gradient at a zero vector is 0."""
    square = jnp.square(vectors).sum(-1, keepdims=True)
    return vectors * jax.lax.rsqrt(jnp.maximum(square, 1e-12))


def _short(text: str, longest: int = 160) -> str:
    text = " ".join(text.split())
    return text if len(text) <= longest else text[: longest - 3] + "..."
