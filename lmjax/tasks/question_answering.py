"""Extractive question answering: SQuAD 1.1 and 2.0 (BERT §4.2, §4.3, run_squad.py)."""

import dataclasses
import heapq
import re
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from scipy.special import softmax

from lmjax.configuration import Finite, Size
from lmjax.data import docstrings
from lmjax.data.rows import BadRowError, Notes, Row, column
from lmjax.data.tokenizers import Tokenizer
from lmjax.errors import ConfigError
from lmjax.models import heads
from lmjax.nn.layers import score_targets
from lmjax.objectives.base import Batch, Scored, weighted_sum
from lmjax.tasks.base import Example, Gold, Outputs, Scores, Task
from lmjax.tasks.input_format import spans, widest_windows
from lmjax.tasks.metrics import answer_scores, normalise_answer
from lmjax.tasks.thresholds import best_threshold, threshold_table

_WORST = 10
_SENTENCE = re.compile(r"[^\n]+?(?:[.!?](?=\s)|(?=\n)|$)")
_NEVER = -1e30  # the logit of padding


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class QuestionAnswering(Task):
    """Predicts where the answer starts and ends in the context.

    Question and context form the text pair of the family's input format. A long context is split
    into overlapping windows, one example each. In a window without the whole answer, the targets
    are the [CLS] token. A token can start an answer only in the window that shows most context
    around it. Rows are SQuAD's nested JSON, or flat rows with `id`, `question`, `context` and
    `answers` = {text: [...], answer_start: [...]}.

    Attributes:
      question_length: longest question in tokens; longer ones are truncated and counted.
      stride: distance between the starts of windows, in tokens.
      answer_length: longest predicted answer, in tokens.
      n_best: number of starts, ends and answers that are considered.
      no_answer: whether questions may have no answer (SQuAD 2.0).
      null_threshold: predicts no answer if the score of [CLS] exceeds that of the best answer by
        more than this. None selects the value with the best F1 on validation after training.
    """

    head: ClassVar[heads.Task] = "question_answering"
    headline: ClassVar[str] = "span"
    per_token: ClassVar[dict[str, int]] = {
        **Task.per_token,
        "starts": 0,  # 1 where the answer starts
        "ends": 0,
        "from": -1,  # character range of a context token
        "to": -1,
        "widest": 0,  # 1 if no other window shows more context around the token
    }
    token_outputs: ClassVar[tuple[str, ...]] = ("logits",)

    question_length: Size = 64
    stride: Size = 128
    answer_length: Size = 30
    n_best: Size = 20
    no_answer: bool = False
    null_threshold: Finite | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.question_length + 3 >= self.length:
            raise ConfigError(
                f"question_length: {self.question_length} of length={self.length} tokens leave no"
                " room for the context; reduce it"
            )

    def parse(self, values: Row, gold: Gold = "required") -> Row | list[Row | BadRowError]:
        if "paragraphs" not in values:
            return self._question(values, gold)
        found: list[Row | BadRowError] = []
        try:
            for paragraph in values["paragraphs"]:
                if isinstance(paragraph, BadRowError):
                    found.append(paragraph)
                    continue
                for question in paragraph["qas"]:
                    try:
                        if isinstance(question, BadRowError):
                            raise question
                        flat = {**question, "context": paragraph["context"]}
                        found.append(self._question(flat, gold))
                    except BadRowError as error:
                        name = question.get("id", "") if isinstance(question, dict) else ""
                        found.append(BadRowError(str(error), f"question {name!r}" if name else ""))
        except (KeyError, TypeError) as error:
            raise BadRowError(f"paragraphs are not in SQuAD's format ({error!r})") from error
        return found

    def _question(self, values: Row, gold: Gold) -> Row:
        row = super().parse(values, gold)
        assert isinstance(row, dict)
        if gold == "required" and None in row["starts"]:
            raise BadRowError("answers are not in SQuAD's format (one lacks 'answer_start')")
        return row

    def parse_inputs(self, values: Row) -> Row:
        row = {"id": str(values.get("id", ""))}
        for name in ("question", "context"):
            row[name] = column(values, name, "type")
            if not isinstance(row[name], str) or not row[name].strip():
                raise BadRowError(f"empty {name}")
        return row

    def has_gold(self, values: Row) -> bool:
        try:
            texts, _ = _answers(values)
        except BadRowError:
            return True  # `parse_gold` reports the error
        stated = any(values.get(name) is not None for name in ("answers", "gold", "is_impossible"))
        return bool(texts or values.get("is_impossible")) or (stated and self.no_answer)

    def parse_gold(self, values: Row, row: Row) -> Row:
        texts, starts = _answers(values)
        context = row["context"]
        if values.get("is_impossible"):
            texts, starts = [], []
        elif not texts and "is_impossible" in values:
            raise BadRowError("no answer, and 'is_impossible' is false")
        if not texts and not self.no_answer:
            raise BadRowError("no answer (config.task.no_answer=true accepts such questions)")
        for text, start in zip(texts, starts, strict=True):
            if not text.strip():
                raise BadRowError("empty answer")
            if start is None:
                continue
            if not 0 <= start <= len(context) or not context.startswith(text, start):
                raise BadRowError(f"the answer is not in the context at its start ('{text[:40]}')")
        return {"gold": texts, "starts": starts}

    def embedded(self, split: str, cache_dir: str) -> Iterator[Row]:
        for row in docstrings.question_rows(split, cache_dir):
            yield {**row, "gold": row.pop("answers")}

    def texts(self, row: Row) -> Iterator[str]:
        yield row["question"]
        yield row["context"]

    def encode(
        self, rows: Sequence[Row], tokenizer: Tokenizer, notes: Notes, training: bool
    ) -> list[Example]:
        del training  # every window is an example, in training and evaluation
        form = self.form
        questions = tokenizer.encode_batch([row["question"] for row in rows])
        contexts = tokenizer.encode_with_offsets([row["context"] for row in rows])
        examples = []
        for i, (row, question, (ids, offsets)) in enumerate(
            zip(rows, questions, contexts, strict=True)
        ):
            cut = question[: self.question_length]
            notes.add(
                f"questions cut to {self.question_length} tokens",
                count=int(len(cut) < len(question)),
            )
            begins, ends = trimmed(offsets, row["context"])
            answer = _answer_tokens(row, begins, ends)
            windows = spans(
                len(ids), self.length - form.special_tokens(pair=True) - len(cut), self.stride
            )
            widest = widest_windows(windows, len(ids))
            notes.add("contexts read in windows", count=int(len(windows) > 1))
            inside = 0
            for w, (begin, end) in enumerate(windows):
                joined = form.join(cut, ids[begin:end])
                here = slice(joined.second, joined.second + end - begin)
                arrays = {
                    name: np.full(len(joined.tokens), fill, np.int32)
                    for name, fill in self.per_token.items()
                    if name not in Task.per_token
                }
                arrays["from"][here], arrays["to"][here] = begins[begin:end], ends[begin:end]
                arrays["widest"][here] = widest[begin:end] == w
                null = self._null(joined.tokens)
                first, last = null, null
                if answer is not None and begin <= answer[0] and answer[1] < end:
                    first, last = (joined.second + place - begin for place in answer)
                    inside += 1
                arrays["starts"][first] = arrays["ends"][last] = 1
                examples.append(self.example(i, joined.tokens, joined.token_types, **arrays))
            notes.add("answers whole in no window", count=int(answer is not None and not inside))
        return examples

    def _null(self, tokens: np.ndarray) -> int:
        """Returns the position of [CLS], which represents "no answer"."""
        return 0 if tokens[0] == self.vocabulary.cls else len(tokens) - 1

    def compute_loss(self, outputs: Outputs, batch: Batch) -> Scored:
        real = batch["segment_ids"] > 0
        losses: Any = 0.0
        hits: Any = True
        for i, name in enumerate(("starts", "ends")):
            logits = jnp.where(real, outputs["logits"][..., i], _NEVER)
            loss, hit = score_targets(logits, batch[name].argmax(-1))
            losses, hits = losses + loss / 2, hits & hit
        weight = batch["weight"]
        terms = {"span": weighted_sum(losses, weight)}
        return Scored(terms, {"hits": weighted_sum(hits, weight)})

    def predict(
        self,
        rows: Sequence[Row],
        examples: Sequence[Example],
        outputs: Sequence[Outputs],
        whole: bool = True,
    ) -> list[Row]:
        found: list[list[tuple[float, int, int]]] = [[] for _ in rows]
        null = [np.inf] * len(rows)
        for example, output in zip(examples, outputs, strict=True):
            row, logits = int(example["row"]), np.asarray(output["logits"], np.float64)
            place = self._null(example["tokens"])
            null[row] = min(null[row], float(logits[place].sum()))
            found[row] += best_spans(
                logits, example["from"], example["to"], example["widest"], self
            )
        predictions = []
        for index, nothing in enumerate(null):
            best = heapq.nlargest(self.n_best, set(found[index]))
            source = rows[index]
            answers = [(source["context"][begin:end], score) for score, begin, end in best]
            if self.no_answer or not answers:
                answers.append(("", nothing))
            shares = softmax([score for _, score in answers])
            told = {k: v for k, v in source.items() if k != "starts"}
            if self.no_answer:
                told["best_answer"] = answers[0][0]
                told["null_score"] = nothing
                told["null_difference"] = nothing - best[0][0] if best else None
            chosen = 0
            if self.no_answer and best and nothing - best[0][0] > (self.null_threshold or 0.0):
                chosen = len(answers) - 1
            told |= {"prediction": answers[chosen][0], "confidence": float(shares[chosen])}
            predictions.append(told)
        return predictions

    @property
    def tunes(self) -> bool:
        return self.no_answer and self.null_threshold is None

    def tune(self, predictions: Sequence[Row]) -> tuple[Task, Scores]:
        """Selects the threshold with the best F1; reports evaluate-v2.0.py's scores in [0, 1]."""
        plain = self.scores(predictions)
        found = {"null_threshold": 0.0, "f1_at_0": plain["f1"], "exact_at_0": plain["exact"]}
        for i, name in enumerate(("exact", "f1")):
            found[f"best_{name}"], found[f"best_{name}_thresh"], chosen = best_threshold(
                predictions, i
            )
        found["null_threshold"] = chosen
        return dataclasses.replace(self, null_threshold=chosen), found

    def scores(self, predictions: Sequence[Row]) -> Scores:
        """F1 and exact match; with `no_answer`, also the scores at the best thresholds."""
        every = np.array([answer_scores(p["prediction"], p["gold"]) for p in predictions])
        exact, f1 = every.mean(0)
        found = {"f1": float(f1), "exact": float(exact)}
        if self.no_answer:
            answered = np.array([bool(p["gold"]) for p in predictions])
            for name, chosen in (("f1_answer", answered), ("f1_no_answer", ~answered)):
                if chosen.any():
                    found[name] = float(every[chosen, 1].mean())
            if all("null_difference" in p for p in predictions):
                found |= {"best_f1": best_threshold(predictions, 1)[0]}
                found |= {"best_exact": best_threshold(predictions, 0)[0]}
        return found

    def baselines(self, train: Sequence[Row], rows: Sequence[Row]) -> dict[str, Scores]:
        del train
        rules = {
            "first sentence": lambda row: _sentences(row["context"])[0],
            "sentence with most words of the question": _overlapping,
        }
        if self.no_answer:
            rules["never an answer"] = lambda row: ""
        return {
            name: self.scores([row | {"prediction": rule(row)} for row in rows])
            for name, rule in rules.items()
        }

    def report(self, predictions: Sequence[Row]) -> list[str]:
        scored = [(answer_scores(p["prediction"], p["gold"])[1], p) for p in predictions]
        wrong = sorted((p for f1, p in scored if f1 == 0), key=lambda p: -p["confidence"])
        lines = []
        if self.no_answer:
            lines += threshold_table(predictions, self.null_threshold or 0.0)
        lines += [f"## The most confident of {len(wrong)} mistakes without a common word", ""]
        return lines + [
            f"- {' '.join(p['question'].split())} **{' '.join(p['prediction'].split())}**"
            f" ({p['confidence']:.2f}), not"
            f" **{' / '.join(dict.fromkeys(' '.join(g.split()) for g in p['gold']))}**"
            for p in wrong[:_WORST]
        ]


def trimmed(offsets: np.ndarray, text: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the [tokens] starts and ends of tokens in characters, without leading spaces."""
    begins, ends = offsets[:, 0].copy(), offsets[:, 1]
    for i in range(len(begins)):
        while begins[i] < ends[i] and text[begins[i]].isspace():
            begins[i] += 1
    return begins, ends


def best_spans(
    logits: np.ndarray,
    begins: np.ndarray,
    ends: np.ndarray,
    widest: np.ndarray,
    task: QuestionAnswering,
) -> list[tuple[float, int, int]]:
    """Returns (score, begin, end) of the answers in a window, from its n_best logits.

    Args:
      logits: [tokens, 2] start and end logits.
      begins, ends: [tokens] character ranges of context tokens, -1 for other tokens.
      widest: [tokens], nonzero where an answer may start.
      task: limits the answers.

    Returns:
      Scores, and begins and ends in characters.
    """
    answers = []
    context = begins >= 0
    starts = np.flatnonzero(context)
    top = [starts[np.argsort(-logits[starts, i], kind="stable")][: task.n_best] for i in (0, 1)]
    for first in top[0]:
        if not widest[first]:
            continue
        for last in top[1]:
            if first <= last < first + task.answer_length and ends[last] > begins[first]:
                score = float(logits[first, 0] + logits[last, 1])
                answers.append((score, int(begins[first]), int(ends[last])))
    return answers


def _answers(values: Row) -> tuple[list[str], list[int | None]]:
    """Reads texts and starts from SQuAD's list of objects, from columns, or from bare texts."""
    answers = values.get("answers")
    answers = values.get("gold") if answers is None else answers
    try:
        if isinstance(answers, dict):
            texts = list(answers["text"])
            starts = list(answers.get("answer_start", [None] * len(texts)))
        else:
            listed = [a if isinstance(a, dict) else {"text": a} for a in answers or []]
            texts = [answer["text"] for answer in listed]
            starts = [answer.get("answer_start") for answer in listed]
        if len(texts) != len(starts):
            raise ValueError("different numbers of starts and texts")
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("a text is not a string")
        return texts, [None if start is None else int(start) for start in starts]
    except (KeyError, TypeError, ValueError) as error:
        raise BadRowError(f"answers are not in SQuAD's format ({error!r})") from error


def _answer_tokens(row: Row, begins: np.ndarray, ends: np.ndarray) -> tuple[int, int] | None:
    """Returns the first and last token of the first answer; None if its position is unknown."""
    if not row.get("gold") or row["starts"][0] is None:
        return None
    text = row["gold"][0]
    begin = row["starts"][0] + len(text) - len(text.lstrip())
    end = row["starts"][0] + len(text.rstrip())
    touched = np.flatnonzero((ends > begin) & (begins < end) & (ends > begins))
    return (int(touched[0]), int(touched[-1])) if len(touched) else None


def _sentences(text: str) -> list[str]:
    return [s.strip() for s in _SENTENCE.findall(text) if s.strip()] or [text]


def _overlapping(row: Row) -> str:
    asked = set(normalise_answer(row["question"]).split())
    common = [len(asked & set(normalise_answer(s).split())) for s in _sentences(row["context"])]
    return _sentences(row["context"])[int(np.argmax(common))]
