"""Zero-, one- and few-shot prompting.

A row becomes a prompt and several choices; the answer is the choice with the highest score (Brown
et al. 2020 §2.4). `NORMALISATIONS` lists the scores, all of which are reported:

`sum`: log p of the choice. `token`: log p / number of tokens. `byte`: log p / number of bytes of
the text. `unconditional`: log p minus the choice's log p after the words `unconditional`, i.e.
pointwise mutual information.
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
    """Converts a row to a prompt and choices.

    Attributes:
      prompt: text with {column} as the placeholder of a column.
      label: the column of the correct choice: one of `labels`, or the choice's index from 0.
      labels: for classification: the possible values of the column `label`.
      words: the choice for each of `labels`; () = the labels themselves.
      choices: for multiple choice: the column with a list of texts, or several columns with one
        text each.
      before: text between prompt and choice.
      separator: text after each example.
      shots: number of examples with their answers before the prompt.
      unconditional: replaces the prompt when a choice is scored without it.
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
                "labels: set either `labels` for classification or `choices` for multiple choice"
            )
        if self.words and len(self.words) != len(self.labels):
            raise ConfigError(
                f"words: {len(self.words)} for {len(self.labels)} labels; give one per label"
            )
        for name in ("labels", "words"):
            values = getattr(self, name)
            if len(set(values)) < len(values) or len(values) == 1 or not all(values):
                raise ConfigError(f"{name}: {values!r}: give at least two distinct values")
        if not self.unconditional.strip():
            raise ConfigError("unconditional: empty; give words such as 'Answer:'")
        try:
            fields = [
                (name, spec, how)
                for _, name, spec, how in string.Formatter().parse(self.prompt)
                if name is not None
            ]
        except ValueError as error:
            raise ConfigError(f"prompt: {error}; write {{{{ and }}}} for braces") from error
        if not fields or any(spec or how or not name for name, spec, how in fields):
            raise ConfigError(
                f"prompt: {self.prompt!r}: expected {{column}} with the name of a column;"
                " write {{ and }} for braces"
            )

    def parse(self, values: Row) -> Row:
        """Returns the prompt, the choices and the index of the correct one.

        Raises:
          BadRowError: a column of the template is missing or invalid.
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
                raise BadRowError(f"label '{label}' is not in config.template.labels")
            return self._row("".join(parts), choices, self.labels.index(label))
        found = [_cell(values, name, "choices") for name in self.choices]
        choices = found[0] if len(found) == 1 and isinstance(found[0], list) else found
        if len(choices) < 2 or not all(isinstance(c, str) and c.strip() for c in choices):
            raise BadRowError("an empty choice, or fewer than two")
        try:
            gold = int(label)
        except ValueError:
            raise BadRowError(f"no number in column '{self.label}' ('{label}')") from None
        if not 0 <= gold < len(choices):
            raise BadRowError(f"label {gold} is out of range for {len(choices)} choices, from 0")
        return self._row("".join(parts), choices, gold)

    def _row(self, prompt: str, choices: list[str], gold: int) -> Row:
        return {"prompt": prompt, "choices": choices, "gold": gold}

    def context(self, row: Row, examples: Sequence[Row]) -> str:
        """Returns `examples` with their answers, followed by the prompt of `row`."""
        shown = [
            f"{e['prompt']}{self.before}{e['choices'][e['gold']]}{self.separator}" for e in examples
        ]
        return "".join([*shown, row["prompt"]])


def _cell(values: Row, name: str, field: str) -> Any:
    """Returns the value of the column that the template's `field` names."""
    return column(values, name, field, "config.template.")


def _text(values: Row, name: str, field: str) -> str:
    cell = _cell(values, name, field)
    if not isinstance(cell, str | int | float):
        raise BadRowError(f"no text in column '{name}' (config.template.{field})")
    return str(cell)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptingConfig:
    """The config of a prompting evaluation.

    Attributes:
      seed: seed for sampling rows and shots.
      rows: number of evaluated rows; 0 = all.
      template: converts rows to prompts and choices.
      data: shots are drawn from `train`; `test`, or else `validation`, is evaluated.
    """

    seed: Seed = 0
    rows: NonNegativeInt = 0
    template: Template
    data: RowsConfig


@dataclasses.dataclass(frozen=True, eq=False)
class Questions:
    """The rows of a prompting evaluation.

    Attributes:
      rows: evaluated rows, parsed by `template`.
      examples: parsed rows that shots are drawn from.
      notes: about skipped rows.
    """

    template: Template
    rows: list[Row]
    examples: list[Row]
    seed: int
    notes: Notes


def read_questions(config: Mapping[str, Any]) -> Questions:
    """Reads the rows of a config such as configs/prompting.py.

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
    """The answers of a model.

    Attributes:
      scores: by normalisation, [rows][choices] float64; the highest is the answer. None for a row
        with a choice that exceeds the position table by itself.
      right: by normalisation, [answered rows]: 1 if the correct choice has the highest score, 1/n
        if it ties with n - 1 others, else 0.
      cut: number of rows whose context was truncated on the left.
      unanswered: number of rows without scores, which `share` excludes.
    """

    scores: Mapping[str, list[np.ndarray | None]]
    right: Mapping[str, np.ndarray]
    cut: int
    unanswered: int

    def share(self, normalisation: str) -> Share:
        """Returns the share of correctly answered rows under a normalisation."""
        right = self.right[normalisation]
        return Share(float(right.sum()), len(right))


def answer(model: Pretrained, questions: Questions, method: Method | None = None) -> Answers:
    """Scores the choices of each row.

    Shots are drawn for each row from (seed, row index) without replacement, excluding the row.

    Raises:
      ConfigError: there are fewer examples than shots, a choice has no tokens, or no row has
        choices that fit the position table.
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
            "config.template.choices: every row has a choice that is longer than the position"
            " table; shorten the choices"
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
    """Draws the examples for the prompt of the row with this index.

    Raises:
      ConfigError: there are not enough examples.
    """
    shots, examples, row = questions.template.shots, questions.examples, questions.rows[index]
    if not shots:
        return []
    others = [i for i, e in enumerate(examples) if e["where"] != row["where"]]
    if len(others) < shots:
        raise ConfigError(
            f"config.template.shots: {shots}, but config.data.train has only {len(others)} other"
            " rows; use fewer shots"
        )
    rng = np.random.default_rng([questions.seed, index])
    return [examples[others[i]] for i in rng.choice(len(others), shots, replace=False)]


def majority(questions: Questions) -> Share:
    """Returns the score of always answering with the most frequent index in `train`."""
    rows = questions.rows
    commonest = int(np.argmax(np.bincount([row["gold"] for row in questions.examples])))
    return Share(float(sum(row["gold"] == commonest for row in rows)), len(rows))


def chance(questions: Questions) -> float:
    """Returns the expected accuracy of uniformly random answers."""
    return float(np.mean([1 / len(row["choices"]) for row in questions.rows]))
