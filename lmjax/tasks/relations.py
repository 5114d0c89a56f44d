"""Relation classification between two marked spans (SemEval-2010 task 8; Hendrickx et al. 2010)."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.data import docstrings
from lmjax.data.rows import BadRowError, Notes, Row, column
from lmjax.data.tokenizers import Tokenizer
from lmjax.errors import ConfigError
from lmjax.models import heads
from lmjax.nn.dropout import Seeds
from lmjax.objectives.base import Batch, apply
from lmjax.tasks.base import Example, Outputs, Scores, Task, by_count
from lmjax.tasks.classification import Classes
from lmjax.tasks.metrics import relation_scores

MARKERS = ("[E1]", "[/E1]", "[E2]", "[/E2]")
_HEAD, _TAIL = 1, 2  # entries of 'marks'


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Relations(Classes):
    """Classifies relations by "entity markers, entity start" (Baldini Soares et al. 2019, §3.2).

    [E1] and [/E1] surround the head, [E2] and [/E2] surround the tail. The classifier reads the
    concatenated hidden states of [E1] and [E2]. A causal model has not seen the rest of the text
    at these positions, so for GPT both markers are repeated after the text and read there. The
    markers are added tokens; their embeddings stay random if the trunk is frozen.

    Long texts are truncated far from the spans first.

    Attributes:
      text, spans: column names of the text and of the two spans, head and tail. A span is
        [first character, last character + 1]. Files of SemEval-2010 task 8 have these columns.
      label: column name of the relation.
      other: the label for no relation, which macro-F1 ignores.
    """

    head: ClassVar[heads.Task] = "relation_classification"
    per_token: ClassVar[dict[str, int]] = {**Task.per_token, "marks": 0}
    added_tokens: ClassVar[tuple[str, ...]] = MARKERS
    columns: ClassVar[Mapping[str, str]] = {"text": "text", "label": "gold"}

    text: str = "text"
    spans: tuple[str, ...] = ("head", "tail")
    label: str = "label"
    other: str = "Other"

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.spans) != 2:
            raise ConfigError(f"spans: name two columns, head and tail, not {self.spans}")

    @property
    def names(self) -> dict[str, str]:
        return {**super().names, self.spans[0]: "head", self.spans[1]: "tail"}

    def parse_inputs(self, values: Row) -> Row:
        text = column(values, self.text, "text")
        if not isinstance(text, str) or not text.strip():
            raise BadRowError(f"no text in column '{self.text}'")
        row: Row = {"text": text}
        for name, theirs in zip(("head", "tail"), self.spans, strict=True):
            row[name] = _span(column(values, theirs, "spans"), text, theirs)
        check_apart(row["head"], row["tail"])
        return row

    def parse_gold(self, values: Row, row: Row) -> Row:
        label = column(values, self.label, "label")
        if not isinstance(label, str) or not label.strip():
            raise BadRowError(f"no label in column '{self.label}'")
        return {"gold": label.strip()}

    def embedded(self, split: str, cache_dir: str) -> Iterator[Row]:
        for row in docstrings.relation_rows(split, cache_dir):
            yield {**{n: row[n] for n in ("text", "head", "tail")}, "gold": row["label"]}

    def texts(self, row: Row) -> Iterator[str]:
        yield row["text"]

    def encode(
        self, rows: Sequence[Row], tokenizer: Tokenizer, notes: Notes, training: bool
    ) -> list[Example]:
        del training
        form, ids = self.form, [tokenizer.token_id(marker) for marker in MARKERS]
        again = [ids[0], ids[2]] if self.model.causal else []
        room = self.length - form.special_tokens(pair=False) - len(MARKERS) - len(again)
        encoded = tokenizer.encode_batch([part for row in rows for part in _parts(row)])
        examples = []
        for i, row in enumerate(rows):
            parts = encoded[5 * i : 5 * i + 5]
            kept = _kept([len(part) for part in parts], room)
            notes.add(f"cut to {self.length} tokens", count=int(kept != _whole(parts)))
            before, first, between, second, after = (
                part[begin:end] for part, (begin, end) in zip(parts, kept, strict=True)
            )
            one, two = ids[:2], ids[2:]
            if row["head"] > row["tail"]:
                one, two = two, one
            tokens = [*before, one[0], *first, one[1], *between]
            places = [len(before), len(tokens)]
            tokens += [two[0], *second, two[1], *after]
            if row["head"] > row["tail"]:
                places.reverse()
            if again:
                places = [len(tokens), len(tokens) + 1]
                tokens += again
            joined = form.join(np.asarray(tokens, np.int32))
            marks = np.zeros(len(joined.tokens), np.int32)
            marks[joined.first + np.array(places)] = _HEAD, _TAIL
            examples.append(
                self.example(
                    i, joined.tokens, joined.token_types, marks=marks, gold=self.target(row)
                )
            )
        return examples

    def forward(self, params: Any, batch: Batch, seeds: Seeds | None) -> Outputs:
        read = (*self.inputs(batch), seeds, _places(batch))
        return {"logits": apply(self.network, params, *read)}

    def scores(self, predictions: Sequence[Row]) -> Scores:
        gold, guesses = ([p[k] for p in predictions] for k in ("gold", "prediction"))
        return relation_scores(gold, guesses, self.other)

    def baselines(self, train: Sequence[Row], rows: Sequence[Row]) -> dict[str, Scores]:
        related = [row["gold"] for row in train if row["gold"] != self.other]
        usual = by_count(related or [self.other])[0]
        found = {f"always {usual}": self.scores([r | {"prediction": usual} for r in rows])}
        name = "TF-IDF of the spans and between + logistic regression"
        return found | self.by_words(name, train, rows, _bag)

    def report(self, predictions: Sequence[Row]) -> list[str]:
        return super().report([p | {"text": marked(p)} for p in predictions])


def check_apart(head: Sequence[int], tail: Sequence[int]) -> None:
    """Raises BadRowError for spans that overlap."""
    if head[0] < tail[1] and tail[0] < head[1]:
        raise BadRowError(f"head and tail overlap ({list(head)}, {list(tail)})")


def marked(row: Row) -> str:
    """Returns the text with markers around its head and tail, as the model reads it."""
    order = MARKERS if row["head"] < row["tail"] else (*MARKERS[2:], *MARKERS[:2])
    before, first, between, second, after = _parts(row, keep_spaces=True)
    return f"{before}{order[0]}{first}{order[1]}{between}{order[2]}{second}{order[3]}{after}"


def _span(value: Any, text: str, name: str) -> list[int]:
    good = isinstance(value, list | tuple) and len(value) == 2
    if not good or not all(isinstance(x, int) and not isinstance(x, bool) for x in value):
        raise BadRowError(f"no [begin, end] of characters in column '{name}' ({value!r})")
    begin, end = value
    if not 0 <= begin < end <= len(text) or not text[begin:end].strip():
        raise BadRowError(
            f"column '{name}' is not a span of the text ([{begin}, {end}] of {len(text)})"
        )
    return [begin, end]


def _parts(row: Row, keep_spaces: bool = False) -> list[str]:
    """Splits the text into five parts: before, first span, between, second span, after.

    Spaces belong to the part that follows them, as in byte-level BPE and SentencePiece.
    """
    text = row["text"]
    cuts = [0, *sorted([*row["head"], *row["tail"]]), len(text)]
    parts = [text[a:b] for a, b in itertools.pairwise(cuts)]
    if keep_spaces:
        return parts
    for i in range(1, 5):
        bare = parts[i - 1].rstrip()
        parts[i] = parts[i - 1][len(bare) :] + parts[i]
        parts[i - 1] = bare
    return parts


def _whole(parts: Sequence[np.ndarray]) -> list[tuple[int, int]]:
    return [(0, len(part)) for part in parts]


def _kept(lengths: Sequence[int], room: int) -> list[tuple[int, int]]:
    """Returns the (begin, end) to keep of each of the five parts, at most `room` tokens in total.

    First the longer outer part is truncated at its outer end, then the part between the spans at
    its end, then the longer span.
    """
    before, first, between, second, after = lengths
    excess = max(sum(lengths) - room, 0)
    outer = before + after - min(excess, before + after)
    excess -= before + after - outer
    b = min(before, max(outer - after, outer // 2))
    a = outer - b
    middle = max(between - excess, 0)
    excess -= between - middle
    inner = first + second - excess
    one = min(first, max(inner - second, inner // 2))
    return [(before - b, before), (0, one), (0, middle), (0, inner - one), (0, a)]


def _places(batch: Batch) -> jax.Array:
    """Returns the [batch, 2] positions at which head and tail are read."""
    return jnp.stack([jnp.argmax(batch["marks"] == m, axis=1) for m in (_HEAD, _TAIL)], axis=1)


def _bag(row: Row) -> str:
    """Returns words marked with their part, plus features for the order and distance of spans."""
    _, first, between, second, _ = _parts(row)
    a, b = ("h", "t") if row["head"] < row["tail"] else ("t", "h")
    named = {a: first, b: second, "b": between}
    size = min(len(between.split()), 20)
    words = [f"{name}:{word}" for name, text in named.items() for word in text.split()]
    return " ".join([*words, f"order:{a}{b}", f"between:{size}"])
