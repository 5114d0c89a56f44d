"""Conditional text generation: summaries, headlines, questions about a text (GPT-1 §3.3)."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from lmjax.configuration import Finite, NonNegativeInt, PositiveInt, Size
from lmjax.convert.pretrained import Pretrained
from lmjax.data import batching, docstrings
from lmjax.data.rows import BadRowError, Notes, Row, column
from lmjax.data.tokenizers import Tokenizer
from lmjax.errors import ConfigError
from lmjax.extras import installed
from lmjax.generation.api import generate
from lmjax.generation.settings import GenerationConfig
from lmjax.models import heads
from lmjax.nn.dropout import Seeds
from lmjax.nn.layers import score_targets
from lmjax.objectives.base import Batch, Scored, apply, weighted_sum
from lmjax.tasks.base import Example, Outputs, Scores, Task
from lmjax.tasks.baselines import words_of_code
from lmjax.tasks.metrics import check_sacrebleu, text_scores

_SHOWN = 10
_AT_ONCE = 64  # texts generated in one batch


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Generation(Task):
    """A GPT reads [EOD] prompt [SEP] and continues with the target and [EOD].

    The loss covers only the tokens after [SEP]. Predictions are generated greedily or by beam
    search. Long prompts and targets are truncated at their end; such a target has no [EOD].

    Attributes:
      prompt, target: column names.
      target_length: the most tokens of a target and of a generated text.
      num_beams, length_penalty, no_repeat_ngram_size: as in `lmjax.generate`.
    """

    head: ClassVar[heads.Task] = "language_model"
    headline: ClassVar[str] = "target"
    per_token: ClassVar[dict[str, int]] = {**Task.per_token, "targets": -1}
    token_outputs: ClassVar[tuple[str, ...]] = ("losses", "hits")
    reads: ClassVar[str] = "prompt"
    columns: ClassVar[Mapping[str, str]] = {"prompt": "prompt", "target": "gold"}

    prompt: str = "prompt"
    target: str = "target"
    target_length: Size = 40
    num_beams: PositiveInt = 1
    length_penalty: Finite = 1.0
    no_repeat_ngram_size: NonNegativeInt = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.model.causal:
            raise ConfigError(
                f"task: {self.model.family()} was not pretrained to continue a text; set"
                " config.init or config.model.type to a GPT"
            )
        if not getattr(self.model, "tie_embeddings", True):
            raise ConfigError(
                "model.tie_embeddings: fine-tuning starts from the encoder, which lacks a separate"
                " output table; use a model with tied embeddings"
            )
        if self.freeze:
            raise ConfigError("freeze: generation has no head to train; set it to ''")
        if self.target_length > self.length - 4:
            raise ConfigError(
                f"target_length: {self.target_length} leaves no room for a prompt in a length of"
                f" {self.length}; at most {self.length - 4}"
            )
        self._settings()  # validates the fields

    def check_metrics(self) -> None:
        check_sacrebleu()

    def parse_inputs(self, values: Row) -> Row:
        return {"prompt": _text(values, self.prompt, "prompt")}

    def parse_gold(self, values: Row, row: Row) -> Row:
        return {"gold": _text(values, self.target, "target")}

    def embedded(self, split: str, cache_dir: str) -> Iterator[Row]:
        for row in docstrings.signature_rows(split, cache_dir):
            yield {"prompt": row["prompt"], "gold": row["target"]}

    def texts(self, row: Row) -> Iterator[str]:
        yield row["prompt"]
        yield row["gold"]

    def encode(
        self, rows: Sequence[Row], tokenizer: Tokenizer, notes: Notes, training: bool
    ) -> list[Example]:
        prompts = tokenizer.encode_batch([row["prompt"] for row in rows])
        targets = tokenizer.encode_batch([row.get("gold", "") for row in rows])
        v, examples = self.vocabulary, []
        for i, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
            cut = len(target) > self.target_length
            end = [v.eod] if "gold" in rows[i] and not cut else []
            target = target[: self.target_length]
            room = self.length - 2 - len(target) - len(end)
            if not training:  # leave room for the longest generated text
                room = self.length - 2 - self.target_length
            notes.add("prompts cut at their end", count=int(len(prompt) > room))
            notes.add("targets cut at their end", count=int(cut))
            before = self.form.ask(prompt[:room]).tokens
            tokens = np.array([*before, *target, *end], np.int32)[: self.length]
            # The target of each position is the next token.
            following = np.full(len(tokens), -1, np.int32)
            following[len(before) - 1 : -1] = tokens[len(before) :]
            examples.append(
                self.example(
                    i,
                    tokens,
                    np.zeros_like(tokens),
                    targets=following,
                    prompt_length=np.int32(len(before)),
                )
            )
        return examples

    def forward(self, params: Any, batch: Batch, seeds: Seeds | None) -> Outputs:
        """Returns [batch, length] losses and hits of the next token; logits take more memory."""
        logits = apply(self.network, params, *self.inputs(batch), seeds)
        losses, hits = score_targets(logits, jnp.maximum(batch["targets"], 0))
        return {"losses": losses, "hits": hits}

    def compute_loss(self, outputs: Outputs, batch: Batch) -> Scored:
        weights = (batch["targets"] >= 0) * batch["weight"][:, None]
        return Scored(
            {"target": weighted_sum(outputs["losses"], weights)},
            {"hits": weighted_sum(outputs["hits"], weights)},
        )

    def forward_flops(self, length: int) -> float | None:
        encoder = super().forward_flops(length)
        head = 2 * length * self.model.trunk.hidden_size * self.model.vocab_size
        return None if encoder is None else encoder + head

    def write(
        self, params: Any, tokenizer: Tokenizer, examples: Sequence[Example]
    ) -> list[Outputs]:
        model = Pretrained(self.network, self.merged(params), tokenizer)
        prompts = [e["tokens"][: int(e["prompt_length"])].tolist() for e in examples]
        texts: list[Outputs] = [{} for _ in prompts]
        for chosen, _ in batching.by_length([len(prompt) for prompt in prompts], _AT_ONCE):
            made = generate(model, [prompts[i] for i in chosen], **self._settings())
            for i, text in zip(chosen, made, strict=True):
                sure = float(np.exp(np.mean(text.log_probs)))
                texts[i] = {"text": text.text.strip(), "confidence": sure}
        return texts

    def _settings(self) -> dict[str, Any]:
        """The settings of `lmjax.generate`."""
        config = GenerationConfig(
            max_new_tokens=self.target_length,
            num_beams=self.num_beams,
            length_penalty=self.length_penalty,
            no_repeat_ngram_size=self.no_repeat_ngram_size,
        )
        return dataclasses.asdict(config)

    def predict(
        self,
        rows: Sequence[Row],
        examples: Sequence[Example],
        outputs: Sequence[Outputs],
        whole: bool = True,
    ) -> list[Row]:
        predictions = []
        for row, example, output in zip(rows, examples, outputs, strict=True):
            told = row | {"prediction": output["text"], "confidence": output["confidence"]}
            if "gold" in row:
                asked = example["targets"] >= 0
                told["nats_a_token"] = float(np.mean(output["losses"][asked]))
            predictions.append(told)
        return predictions

    def scores(self, predictions: Sequence[Row]) -> Scores:
        gold, guesses = ([p[k] for p in predictions] for k in ("gold", "prediction"))
        return text_scores(gold, guesses)

    def baselines(self, train: Sequence[Row], rows: Sequence[Row]) -> dict[str, Scores]:
        said = [" ".join(words_of_code(row["prompt"])) for row in rows]
        found = {"words of the prompt": _scored(self, rows, said)}
        nearest = nearest_targets(train, rows)
        if nearest is not None:
            found["target of the nearest prompt (TF-IDF)"] = _scored(self, rows, nearest)
        return found

    def report(self, predictions: Sequence[Row]) -> list[str]:
        order = sorted(
            predictions, key=lambda p: -text_scores([p["gold"]], [p["prediction"]])["chrf"]
        )
        lines = []
        for title, chosen in (("nearest", order[:_SHOWN]), ("farthest", order[-_SHOWN:])):
            lines += ["", f"## The {title} to the truth", ""]
            for p in chosen:
                lines += [f"- `{p['prompt']}`", f"  - {p['gold']}", f"  - {p['prediction']}"]
        return lines


def _text(values: Row, name: str, field: str) -> str:
    text = column(values, name, field)
    if not isinstance(text, str) or not text.strip():
        raise BadRowError(f"no text in column '{name}'")
    return text


def _scored(task: Generation, rows: Sequence[Row], guesses: Sequence[str]) -> Scores:
    return task.scores([r | {"prediction": g} for r, g in zip(rows, guesses, strict=True)])


def nearest_targets(train: Sequence[Row], rows: Sequence[Row]) -> list[str] | None:
    """Finds for each row the target of the training row with the nearest prompt by TF-IDF.

    Returns:
      The targets, or None if scikit-learn is not installed.
    """
    if not installed("sklearn"):
        return None
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(analyzer=words_of_code)
    known = vectorizer.fit_transform([row["prompt"] for row in train])
    asked = vectorizer.transform([row["prompt"] for row in rows])
    best = np.asarray((asked @ known.T).toarray().argmax(1))
    return [train[i]["gold"] for i in best]
