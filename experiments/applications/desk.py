"""A support desk: recognises the intent of a question, finds sections, reads the answer."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from lmjax.data.files import (
    BadRowError,
    fault_of,
    find_files,
    form_of,
    json_row,
    read_lines,
)
from lmjax.data.rows import Row
from lmjax.errors import ConfigError
from lmjax.extras import require
from lmjax.tasks.base import Scores
from lmjax.tasks.baselines import words_of_code
from lmjax.tasks.metrics import answer_scores
from lmjax.tasks.opened import Opened


@dataclasses.dataclass(frozen=True)
class Section:
    """A text that may hold answers, the intent that it belongs to, and its source."""

    intent: str
    source: str
    text: str


@dataclasses.dataclass(frozen=True)
class Answer:
    """The answer to a question.

    Attributes:
      intent, confidence: the predicted intent and its probability.
      section: the section that holds the answer; None if no section shares a word with the
        question.
      text: the answer; '' if there is none.
      score: the similarity of `Desk.search` times the reader's confidence, the highest among the
        sections read.
    """

    intent: str
    confidence: float
    section: Section | None
    text: str
    score: float


class Desk:
    """A pipeline of intent recognition, search and extractive reading."""

    def __init__(self, classifier: Opened, reader: Opened, sections: Sequence[Section]):
        """Builds a TF-IDF index of the sections.

        Args:
          classifier: a model of intents.
          reader: a model of question answering.

        Raises:
          ConfigError: there are no sections, or scikit-learn is not installed.
        """
        text = require("sklearn.feature_extraction.text", "eval", "sections: the search")
        if not sections:
            raise ConfigError("sections: none to search")
        self.classifier, self.reader, self.sections = classifier, reader, list(sections)
        self._vectorizer = text.TfidfVectorizer(analyzer=words_of_code, sublinear_tf=True)
        self._index = self._vectorizer.fit_transform([f"{s.source} {s.text}" for s in sections])
        self._intents = np.array([s.intent for s in sections])

    def recognise(self, questions: Sequence[str]) -> list[tuple[str, float]]:
        """The intent of each question and its probability."""
        return [(p["prediction"], p["confidence"]) for p in self.classifier.predict(questions)]

    def search(
        self,
        questions: Sequence[str],
        intents: Sequence[tuple[str, float]] | None,
        count: int,
    ) -> list[list[tuple[int, float]]]:
        """The indices of up to `count` sections per question, with similarities, best first.

        Args:
          intents: an intent and its confidence for each question. The similarity of a section of
            that intent is multiplied by 1 + confidence, so that a wrong intent hides no section.
            None ignores intents.
        """
        similar = (self._vectorizer.transform(questions) @ self._index.T).toarray()
        found = []
        for i, row in enumerate(similar):
            if intents is not None:
                intent, confidence = intents[i]
                row = row * np.where(self._intents == intent, 1.0 + confidence, 1.0)
            best = np.argsort(-row, kind="stable")[:count]
            found.append([(int(s), float(row[s])) for s in best if row[s] > 0])
        return found

    def answer(self, questions: Sequence[str], count: int = 3) -> list[Answer]:
        """Answers read from the `count` most similar sections."""
        intents = self.recognise(questions)
        found = self.search(questions, intents, count)
        pairs = [(q, s) for q, sections in enumerate(found) for s, _ in sections]
        texts = [self.sections[s].text for _, s in pairs]
        read = dict(zip(pairs, self.read([questions[q] for q, _ in pairs], texts), strict=True))
        answers = []
        for q, (intent, probability) in enumerate(intents):
            best = Answer(intent, probability, None, "", 0.0)
            for s, similarity in found[q]:
                text, confidence = read[q, s]
                score = similarity * confidence
                if score > best.score:
                    best = Answer(intent, probability, self.sections[s], text, score)
            answers.append(best)
        return answers

    def read(self, questions: Sequence[str], contexts: Sequence[str]) -> list[tuple[str, float]]:
        """The reader's answer to each question from its context, and its confidence."""
        rows = [
            {"question": question, "context": context}
            for question, context in zip(questions, contexts, strict=True)
        ]
        return [(p["prediction"], p["confidence"]) for p in self.reader.predict(rows)]


def evaluate(desk: Desk, rows: Sequence[Row], count: int = 3) -> dict[str, Scores]:
    """Scores of each stage of a desk and of the whole.

    Args:
      rows: questions with 'text', the intent as 'label', the section as 'context', and 'answers'.
      count: how many sections are read.

    Returns:
      'intents': accuracy. 'sections': how often the right one is found, with and without the
      predicted intent. 'answers': F1 and exact match of the desk, of the reader given the right
      section, and of the first line of the most similar section.
    """
    questions = [row["text"] for row in rows]
    answers = desk.answer(questions, count)
    intents = [(answer.intent, answer.confidence) for answer in answers]
    right = [[s for s, x in enumerate(desk.sections) if x.text == row["context"]] for row in rows]

    def found(with_intent: bool, most: int) -> float:
        listed = desk.search(questions, intents if with_intent else None, most)
        hits = [bool({s for s, _ in ss} & set(r)) for ss, r in zip(listed, right, strict=True)]
        return float(np.mean(hits))

    given = desk.read(questions, [row["context"] for row in rows])
    top = desk.search(questions, None, 1)
    firsts = [desk.sections[s[0][0]].text.split("\n")[1] if s else "" for s in top]
    scored = {
        "the desk": [answer.text for answer in answers],
        "right section given": [text for text, _ in given],
        "first line of the best section": firsts,
    }
    correct = [i == row["label"] for (i, _), row in zip(intents, rows, strict=True)]
    return {
        "intents": {"accuracy": float(np.mean(correct))},
        **{
            f"sections, {how} the intent": {
                f"first {most}": found(how == "with", most) for most in (1, count)
            }
            for how in ("with", "without")
        },
        **{f"answers: {name}": _answers(rows, texts) for name, texts in scored.items()},
    }


def _answers(rows: Sequence[Row], texts: Sequence[str]) -> Scores:
    every = [answer_scores(t, row["answers"]) for t, row in zip(texts, rows, strict=True)]
    exact, f1 = np.mean(every, axis=0)
    return {"f1": float(f1), "exact": float(exact)}


def read_sections(path: str) -> list[Section]:
    """Reads JSON lines with 'intent', 'source' and 'text'.

    Raises:
      ConfigError: names the line that lacks one of them.
    """
    found = []
    where = "--sections"
    for file in find_files(path, where, lambda file: form_of(file) == ".jsonl"):
        for number, line in read_lines(file, where):
            if not line.strip():
                continue
            row = json_row(line)
            fault = fault_of(row)
            if isinstance(row, BadRowError) or fault:
                raise ConfigError(f"{where}: {file}:{number}: {fault}")
            names = ("intent", "source", "text")
            if missing := [name for name in names if row.get(name) is None]:
                raise ConfigError(f"{where}: {file}:{number}: no '{missing[0]}'")
            found.append(Section(**{name: str(row[name]) for name in names}))
    return found
