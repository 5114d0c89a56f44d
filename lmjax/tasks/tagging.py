"""Token classification: named entities, parts of speech, slots (BERT §5.3)."""

import collections
import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np
from scipy.special import softmax

from lmjax.configuration import OptionalSize
from lmjax.data import docstrings
from lmjax.data.rows import BadRowError, Notes, Row, column
from lmjax.data.tokenizers import Tokenizer
from lmjax.models import heads
from lmjax.nn.layers import score_targets
from lmjax.objectives.base import Batch, Scored, weighted_sum
from lmjax.tasks.base import Example, Outputs, Scores, Task, by_count
from lmjax.tasks.input_format import spans, widest_windows
from lmjax.tasks.metrics import check_seqeval, class_scores, confusion, span_scores

_WORST = 10
_BIO = re.compile(r"O|[BIES]-\S+")
_WORD = re.compile(r"\S+")


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Tagging(Task):
    """Tags each word with a head on its first token; its other tokens are ignored.

    A sentence longer than `length` is split into overlapping windows. Each word is tagged, in
    training and prediction, in the window that shows most context around it. A word without
    tokens gets the most frequent label.

    A plain text, {'text': ...}, can be tagged too: it is split at white space, and predictions
    contain the character range of each word under 'offsets'.

    Attributes:
      words, tags: column names. Columns of CoNLL files are numbered from '0', or from the end:
        '-1' is the last.
      stride: distance between the starts of windows in tokens; 0 = half a window.
      score: 'spans' scores whole spans of BIO tags, 'words' scores each word.
    """

    head: ClassVar[heads.Task] = "token_classification"
    headline: ClassVar[str] = "tags"
    columns: ClassVar[Mapping[str, str]] = {"words": "words", "tags": "gold"}
    per_token: ClassVar[dict[str, int]] = {**Task.per_token, "tags": -1, "word": -1}
    token_outputs: ClassVar[tuple[str, ...]] = ("logits",)

    words: str = "words"
    tags: str = "tags"
    stride: OptionalSize = 0
    score: Literal["spans", "words"] = "spans"

    def check_metrics(self) -> None:
        if self.score == "spans":
            check_seqeval()

    def parse_inputs(self, values: Row) -> Row:
        if self.words not in values and isinstance(text := values.get("text"), str):
            found = list(_WORD.finditer(text))
            row: Row = {"text": text, "words": [word.group() for word in found]}
            row["offsets"] = [list(word.span()) for word in found]
        else:
            row = {"words": _strings(values, self.words, "words")}
        if not row["words"]:
            raise BadRowError("no words")
        for i, word in enumerate(row["words"]):
            if not word.strip():
                raise BadRowError("an empty word", i)
        return row

    def parse_gold(self, values: Row, row: Row) -> Row:
        tags, words = _strings(values, self.tags, "tags"), row["words"]
        if len(words) != len(tags):
            raise BadRowError(f"{len(tags)} tags for {len(words)} words")
        for i, tag in enumerate(tags):
            if self.score == "spans" and not _BIO.fullmatch(tag):
                why = f"{tag!r} is not a BIO tag (config.task.score='words' accepts any tag)"
                raise BadRowError(why, i)
        return {"gold": tags}

    def has_gold(self, values: Row) -> bool:
        # In a file with one column, the last column contains the words.
        numbered = self.tags.removeprefix("-").isdigit() and "0" in values
        return super().has_gold(values) and not (numbered and "1" not in values)

    def embedded(self, split: str, cache_dir: str) -> Iterator[Row]:
        for row in docstrings.parameter_rows(split, cache_dir):
            yield {"words": row["words"], "gold": row["tags"]}

    def texts(self, row: Row) -> Iterator[str]:
        yield " ".join(row["words"])

    def bind(self, rows: Sequence[Row]) -> Task:
        found = self.labels or by_count([tag for row in rows for tag in row["gold"]])
        return dataclasses.replace(self, labels=found)

    def check(self, row: Row) -> None:
        for i, tag in enumerate(row.get("gold", ())):
            if tag not in self.labels:
                known = ", ".join(self.labels[:12])
                raise BadRowError(f"tag {tag!r} is not in the set ({known})", i)

    def encode(
        self, rows: Sequence[Row], tokenizer: Tokenizer, notes: Notes, training: bool
    ) -> list[Example]:
        del training
        encoded = tokenizer.encode_with_offsets([" ".join(row["words"]) for row in rows])
        form, index = self.form, {tag: i for i, tag in enumerate(self.labels)}
        room = self.length - form.special_tokens(pair=False)
        stride = self.stride or max(room // 2, 1)
        examples = []
        for i, (row, (ids, offsets)) in enumerate(zip(rows, encoded, strict=True)):
            first = first_tokens(words_of_tokens(row["words"], offsets))
            lost = len(row["words"]) - int((first >= 0).sum())
            notes.add(f"words without tokens, given '{self.labels[0]}'", count=lost)
            windows = spans(len(ids), room, stride)
            windows[-1] = max(len(ids) - room, 0), len(ids)  # a full window before the end
            widest = widest_windows(windows, len(ids))
            notes.add(f"split into windows of {self.length} tokens", count=int(len(windows) > 1))
            for w, (begin, end) in enumerate(windows):
                joined = form.join(ids[begin:end])
                word = np.full(len(joined.tokens), -1, np.int32)
                here = slice(joined.first, joined.first + end - begin)
                word[here] = np.where(widest[begin:end] == w, first[begin:end], -1)
                tags = np.full_like(word, -1)
                if "gold" in row:
                    tags[word >= 0] = [index[row["gold"][k]] for k in word[word >= 0]]
                examples.append(
                    self.example(i, joined.tokens, joined.token_types, tags=tags, word=word)
                )
        return examples

    def compute_loss(self, outputs: Outputs, batch: Batch) -> Scored:
        tags = batch["tags"]
        losses, hits = score_targets(outputs["logits"], jnp.maximum(tags, 0))
        weights = (tags >= 0) * batch["weight"][:, None]
        return Scored(
            {"tags": weighted_sum(losses, weights)}, {"hits": weighted_sum(hits, weights)}
        )

    def predict(
        self,
        rows: Sequence[Row],
        examples: Sequence[Example],
        outputs: Sequence[Outputs],
        whole: bool = True,
    ) -> list[Row]:
        predictions = [
            row | {"prediction": [self.labels[0]] * len(row["words"]), "confidence": 1.0}
            for row in rows
        ]
        for example, output in zip(examples, outputs, strict=True):
            row = predictions[int(example["row"])]
            logits = np.asarray(output["logits"], np.float64)
            best, sure = logits.argmax(-1), softmax(logits, axis=-1).max(-1)
            for place in np.flatnonzero(example["word"] >= 0):
                row["prediction"][example["word"][place]] = self.labels[best[place]]
                row["confidence"] = min(row["confidence"], float(sure[place]))
        return predictions

    def scores(self, predictions: Sequence[Row]) -> Scores:
        gold = [p["gold"] for p in predictions]
        guesses = [p["prediction"] for p in predictions]
        every = itertools.chain.from_iterable
        words = class_scores(confusion(list(every(gold)), list(every(guesses)), self.labels))
        if self.score == "spans":
            return {**span_scores(gold, guesses), "word_accuracy": words["accuracy"]}
        return {name: words[name] for name in ("accuracy", "macro_f1")}

    def baselines(self, train: Sequence[Row], rows: Sequence[Row]) -> dict[str, Scores]:
        seen: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        for row in train:
            for word, tag in zip(row["words"], row["gold"], strict=True):
                seen[word.lower()][tag] += 1
        most = by_count([tag for row in train for tag in row["gold"]])[0]
        usual = {word: counts.most_common(1)[0][0] for word, counts in seen.items()}
        guesses = [
            row | {"prediction": [usual.get(word.lower(), most) for word in row["words"]]}
            for row in rows
        ]
        return {"each word's most frequent tag": self.scores(guesses)}

    def report(self, predictions: Sequence[Row]) -> list[str]:
        lines = []
        if self.score == "spans":
            from seqeval.metrics import classification_report

            text = classification_report(
                [p["gold"] for p in predictions],
                [p["prediction"] for p in predictions],
                zero_division=0,
            )
            lines += ["## By type", "", "```", *text.rstrip().split("\n"), "```", ""]
        pairs = collections.Counter(
            (gold, guess)
            for p in predictions
            for gold, guess in zip(p["gold"], p["prediction"], strict=True)
            if gold != guess
        )
        lines += ["## The most frequent confusions", ""]
        lines += [f"- {n} times {gold} as {guess}" for (gold, guess), n in pairs.most_common(10)]
        order = sorted(predictions, key=lambda p: -_mistakes(p))
        lines += ["", "## The worst sentences", "", "Mistakes as [word truth>prediction].", ""]
        return lines + [f"- {_marked(p)}" for p in order[:_WORST] if _mistakes(p)]


def words_of_tokens(words: Sequence[str], offsets: np.ndarray) -> np.ndarray:
    """Returns the index of each token's word, [tokens] int; -1 for none.

    Args:
      offsets: [tokens, 2] character ranges of tokens in the words joined by single spaces.
    """
    lengths = np.array([len(word) for word in words])
    starts = np.concatenate([[0], np.cumsum(lengths + 1)[:-1]])
    # A token may begin with the space before its word, so its end decides.
    last = np.searchsorted(starts, offsets[:, 1] - 1, side="right") - 1
    last = np.clip(last, 0, len(words) - 1)
    inside = (offsets[:, 0] < starts[last] + lengths[last]) & (offsets[:, 1] > starts[last])
    return np.where(inside & (offsets[:, 1] > offsets[:, 0]), last, -1)


def first_tokens(of_word: np.ndarray) -> np.ndarray:
    """Returns the word's index for the first token of each word, -1 for other tokens."""
    first = np.full(len(of_word), -1)
    found, places = np.unique(of_word, return_index=True)
    first[places[found >= 0]] = found[found >= 0]
    return first


def _strings(values: Row, name: str, field: str) -> list[str]:
    found = column(values, name, field)
    if not isinstance(found, list) or not all(isinstance(x, str) for x in found):
        raise BadRowError(f"no list of strings in column '{name}'")
    return found


def _mistakes(row: Row) -> int:
    return sum(a != b for a, b in zip(row["gold"], row["prediction"], strict=True))


def _marked(row: Row) -> str:
    triples: Any = zip(row["words"], row["gold"], row["prediction"], strict=True)
    return " ".join(w if g == p else f"[{w} {g}>{p}]" for w, g, p in triples)
