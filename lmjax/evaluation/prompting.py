"""Answers of a model that was never trained to give them: zero-, one- and few-shot prompting.

A row becomes a prompt and the choices that may follow it; the one that the model finds likeliest
is its answer (Brown et al. 2020 §2.4). Likeliest by what, all of `NORMALISATIONS` say:

`sum`: log p of the choice. `token`: divided by its tokens. `byte`: divided by the bytes of its
text. `unconditional`: less the choice's log p after the words `unconditional` alone, which is
their pointwise mutual information.
"""

import dataclasses
import string
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lmjax.configuration import (
    NonNegativeInt,
    Seed,
    build,
    check_ranges,
)
from lmjax.convert.pretrained import Pretrained
from lmjax.data import docstrings
from lmjax.data.rows import BadRowError, Notes, Row, RowsConfig, column, draw, read_split
from lmjax.errors import ConfigError
from lmjax.evaluation.continuations import fit
from lmjax.evaluation.minimal_pairs import Share
from lmjax.evaluation.scoring import Method, passage_scores

NORMALISATIONS = ("sum", "token", "byte", "unconditional")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Template:
    """From a row to a prompt and its choices.

    Attributes:
      prompt: text with {column} where a row's text is to stand.
      label: the column that says which choice is right: one of `labels`, or its number from 0.
      labels: of a classification: what may stand in the column `label`.
      words: what the model may say for each of `labels`; () = the labels themselves.
      choices: of multiple choice: the column with the list of texts, or several columns with one
        each.
      before: between a prompt and a choice.
      separator: between examples with their answers, and behind the last.
      shots: how many examples with their answers stand before the prompt.
      unconditional: what stands in place of the prompt where the choice is to be scored alone.
    """

    prompt: str
    label: str = "label"
    labels: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    before: str = " "
    separator: str = "\n\n"
    shots: NonNegativeInt = 0
    unconditional: str = "Answer:"

    def __post_init__(self) -> None:
        check_ranges(self)
        if bool(self.labels) == bool(self.choices):
            raise ConfigError(
                "labels: name the labels of a classification here, or columns in `choices`; one"
                " of both"
            )
        if self.words and len(self.words) != len(self.labels):
            raise ConfigError(
                f"words: {len(self.words)} for {len(self.labels)} labels; give one for each"
            )
        for name in ("labels", "words"):
            values = getattr(self, name)
            if len(set(values)) < len(values) or len(values) == 1 or not all(values):
                raise ConfigError(f"{name}: {values!r}: at least two are needed, all different")
        if not self.unconditional.strip():
            raise ConfigError("unconditional: empty; give words such as 'Answer:'")
        try:
            fields = [
                (name, spec, how)
                for _, name, spec, how in string.Formatter().parse(self.prompt)
                if name is not None
            ]
        except ValueError as error:
            raise ConfigError(f"prompt: {error}; {{{{ and }}}} stand for braces") from error
        if not fields or any(spec or how or not name for name, spec, how in fields):
            raise ConfigError(
                f"prompt: {self.prompt!r}: {{column}} is expected, with the name of a column;"
                " {{ and }} stand for braces"
            )

    def parse(self, values: Row) -> Row:
        """The prompt, the choices and the number of the right one.

        Raises:
          BadRowError: what the template needs is not there.
        """
        parts = []
        for text, name, _, _ in string.Formatter().parse(self.prompt):
            parts.append(text)
            if name is not None:
                parts.append(_text(values, name, "prompt"))
        label = _text(values, self.label, "label")
        if self.labels:
            choices = list(self.words or self.labels)
            if label not in self.labels:
                raise BadRowError(f"label '{label}' is none of config.template.labels")
            return self._row("".join(parts), choices, self.labels.index(label))
        found = [_cell(values, name, "choices") for name in self.choices]
        choices = found[0] if len(found) == 1 and isinstance(found[0], list) else found
        if len(choices) < 2 or not all(isinstance(c, str) and c.strip() for c in choices):
            raise BadRowError("an empty choice, or less than two")
        try:
            gold = int(label)
        except ValueError:
            raise BadRowError(f"no number in column '{self.label}' ('{label}')") from None
        if not 0 <= gold < len(choices):
            raise BadRowError(f"label {gold} is none of the {len(choices)} choices, from 0")
        return self._row("".join(parts), choices, gold)

    def _row(self, prompt: str, choices: list[str], gold: int) -> Row:
        return {"prompt": prompt, "choices": choices, "gold": gold}

    def context(self, row: Row, examples: Sequence[Row]) -> str:
        """The prompt of `row` behind `examples` with their answers."""
        shown = [
            f"{e['prompt']}{self.before}{e['choices'][e['gold']]}{self.separator}" for e in examples
        ]
        return "".join([*shown, row["prompt"]])


def _cell(values: Row, name: str, field: str) -> Any:
    """What a row has in a column that the template's `field` names."""
    return column(values, name, field, "config.template.")


def _text(values: Row, name: str, field: str) -> str:
    cell = _cell(values, name, field)
    if not isinstance(cell, str | int | float):
        raise BadRowError(f"no text in column '{name}' (config.template.{field})")
    return str(cell)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptingConfig:
    """What is asked, and how.

    Attributes:
      seed: of the rows and the shots that are drawn.
      rows: how many are asked; 0 = all.
      data: `train` is what shots are drawn from, `test` (or else `validation`) what is asked.
    """

    seed: Seed = 0
    rows: NonNegativeInt = 0
    template: Template
    data: RowsConfig


@dataclasses.dataclass(frozen=True, eq=False)
class Questions:
    """What is asked.

    Attributes:
      rows: parsed by `template`.
      examples: parsed rows that shots are drawn from.
      notes: of rows that were left out.
    """

    template: Template
    rows: list[Row]
    examples: list[Row]
    seed: int
    notes: Notes


def read_questions(config: Mapping[str, Any]) -> Questions:
    """Reads all that a config such as configs/prompting.py names.

    Raises:
      ConfigError: a field is unknown, missing or mistyped, or rows cannot be used.
    """
    own = build(PromptingConfig, config, "config")
    data, template = own.data, own.template
    notes = Notes()

    def embedded(split: str, cache_dir: str) -> Iterator[Row]:
        for row in docstrings.description_rows(split, cache_dir):
            yield template.parse(row)

    try:
        examples = read_split(data, "train", template.parse, embedded, notes)
        asked = read_split(
            data, "test" if data.test else "validation", template.parse, embedded, notes
        )
    except BadRowError as error:
        raise ConfigError(f"config.template: {error}") from error
    examples = draw(examples, data.train_rows, own.seed)
    return Questions(template, draw(asked, own.rows, own.seed), examples, own.seed, notes)


@dataclasses.dataclass(frozen=True, eq=False)
class Answers:
    """What a model answers.

    Attributes:
      scores: by normalisation, [rows][choices] float64: the highest is the answer; None for a row
        with a choice that does not fit the position table by itself.
      right: by normalisation, [answered rows]: 1 where the right choice has the highest score;
        1 / n where n choices have the highest and it is one of them; else 0.
      cut: rows whose context did not fit and lost its beginning.
      unanswered: rows without scores, which no share counts.
    """

    scores: Mapping[str, list[np.ndarray | None]]
    right: Mapping[str, np.ndarray]
    cut: int
    unanswered: int

    def share(self, normalisation: str) -> Share:
        """How many of the answered rows are right by a normalisation."""
        right = self.right[normalisation]
        return Share(float(right.sum()), len(right))


def answer(model: Pretrained, questions: Questions, method: Method | None = None) -> Answers:
    """Scores the choices of each row.

    Shots are drawn for each row by (seed, its index) without replacement, never itself.

    Raises:
      ConfigError: fewer examples than shots, a choice without a token, or no row whose choices
        fit the position table.
      NonFiniteError: a score is NaN or infinite.
    """
    template, rows = questions.template, questions.rows
    contexts = [template.context(row, draw_shots(questions, i)) for i, row in enumerate(rows)]
    asked = [
        (context, template.before + choice)
        for context, row in zip(contexts, rows, strict=True)
        for choice in row["choices"]
    ]
    alone = list(dict.fromkeys((template.unconditional, following) for _, following in asked))
    passages, cut, too_long = fit(model, asked, method)
    found = passage_scores(model, passages, method)
    baseline = passage_scores(model, fit(model, alone, method).passages, method)
    prior = {
        following: scores.logs.sum() for (_, following), scores in zip(alone, baseline, strict=True)
    }
    by_name: dict[str, list[np.ndarray | None]] = {name: [] for name in NORMALISATIONS}
    cut_rows = unanswered = at = 0
    for row in rows:
        here = slice(at, at + len(row["choices"]))
        at = here.stop
        cut_rows += bool(cut[here].any())
        if too_long[here].any():
            unanswered += 1
            for scores in by_name.values():
                scores.append(None)
            continue
        sums = np.array([scores.logs.sum() for scores in found[here]])
        by_name["sum"].append(sums)
        by_name["token"].append(sums / [len(scores.logs) for scores in found[here]])
        by_name["byte"].append(sums / [len(choice.encode()) for choice in row["choices"]])
        by_name["unconditional"].append(sums - [prior[f] for _, f in asked[here]])
    if unanswered == len(rows):
        raise ConfigError(
            "config.template.choices: in every row a choice is longer than the position table"
        )
    gold = [row["gold"] for row in rows]
    right = {name: _right(scores, gold) for name, scores in by_name.items()}
    return Answers(by_name, right, cut_rows, unanswered)


def _right(scores: Sequence[np.ndarray | None], gold: Sequence[int]) -> np.ndarray:
    answered = [
        (row == row.max(), g) for row, g in zip(scores, gold, strict=True) if row is not None
    ]
    return np.array([best[g] / best.sum() for best, g in answered])


def draw_shots(questions: Questions, index: int) -> list[Row]:
    """The examples that stand before the prompt of the row with this index.

    Raises:
      ConfigError: there are not so many.
    """
    shots, examples, row = questions.template.shots, questions.examples, questions.rows[index]
    if not shots:
        return []
    others = [i for i, e in enumerate(examples) if e["where"] != row["where"]]
    if len(others) < shots:
        raise ConfigError(
            f"config.template.shots: {shots}, and there are {len(others)} rows of"
            " config.data.train to draw from"
        )
    rng = np.random.default_rng([questions.seed, index])
    return [examples[others[i]] for i in rng.choice(len(others), shots, replace=False)]


def majority(questions: Questions) -> Share:
    """Rows that are right where the commonest number of a right choice in `train` is said."""
    rows = questions.rows
    commonest = int(np.argmax(np.bincount([row["gold"] for row in questions.examples])))
    return Share(float(sum(row["gold"] == commonest for row in rows)), len(rows))


def chance(questions: Questions) -> float:
    """The expected share of right answers where choices are drawn blindly."""
    return float(np.mean([1 / len(row["choices"]) for row in questions.rows]))
