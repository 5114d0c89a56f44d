"""A support desk: whose question it is, where the answer may stand, and what it is."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from lmjax.data.rows import Row
from lmjax.errors import ConfigError
from lmjax.tasks.base import Scores
from lmjax.tasks.metrics import answer_scores
from lmjax.tasks.opened import Opened
from lmjax.tasks.words import words_of_code


@dataclasses.dataclass(frozen=True)
class Section:
    """A piece of text that may hold answers, the intent it belongs to, and where it is from."""

    intent: str
    source: str
    text: str


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the desk says.

    Attributes:
      intent, confidence: what it takes the question for, and the classifier's probability.
      section: that it read, None where no section shares a word with the question.
      text: the answer, '' for none.
      score: what `Desk.search` says of the section, times the reader's confidence; of the
        sections read, the answer has the highest.
    """

    intent: str
    confidence: float
    section: Section | None
    text: str
    score: float


class Desk:
    """Intent recognition, search and reading, one after the other."""

    def __init__(self, classifier: Opened, reader: Opened, sections: Sequence[Section]):
        """Indexes the sections by TF-IDF.

        Args:
          classifier: a run of intents.
          reader: a run of question answering.

        Raises:
          ConfigError: no sections, or scikit-learn is not installed.
        """
        try:
            from sklearn.feature_extraction.text import TfidfVectorizer
        except ImportError as error:
            raise ConfigError(
                "sections are searched by scikit-learn, which is not installed;"
                " pip install -e '.[eval]'"
            ) from error
        if not sections:
            raise ConfigError("sections: none to search")
        self.classifier, self.reader, self.sections = classifier, reader, list(sections)
        self._vectorizer = TfidfVectorizer(analyzer=words_of_code, sublinear_tf=True)
        self._index = self._vectorizer.fit_transform([f"{s.source} {s.text}" for s in sections])
        self._intents = np.array([s.intent for s in sections])

    def recognise(self, questions: Sequence[str]) -> list[tuple[str, float]]:
        """The intent of each question, and its probability."""
        return [(p["prediction"], p["confidence"]) for p in self.classifier.predict(questions)]

    def search(
        self,
        questions: Sequence[str],
        intents: Sequence[tuple[str, float]] | None,
        count: int,
    ) -> list[list[tuple[int, float]]]:
        """For each question up to `count` sections with their similarities, the best first.

        Args:
          intents: of the questions, with their confidences: the similarity of a section of the
            intent is raised by that share, so that a wrong one hides nothing. None = unknown.
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
        """Answers read from the `count` sections that fit question and intent best."""
        intents = self.recognise(questions)
        found = self.search(questions, intents, count)
        pairs = [(q, s) for q, sections in enumerate(found) for s, _ in sections]
        texts = [self.sections[s].text for _, s in pairs]
        said = dict(zip(pairs, self.read([questions[q] for q, _ in pairs], texts), strict=True))
        answers = []
        for q, (intent, sure) in enumerate(intents):
            best = Answer(intent, sure, None, "", 0.0)
            for s, similarity in found[q]:
                text, confidence = said[q, s]
                if similarity * confidence > best.score:
                    score = similarity * confidence
                    best = Answer(intent, sure, self.sections[s], text, score)
            answers.append(best)
        return answers

    def read(self, questions: Sequence[str], contexts: Sequence[str]) -> list[tuple[str, float]]:
        """The reader's answer to each question from its context, and its confidence."""
        rows = [
            {"question": question, "context": context}
            for question, context in zip(questions, contexts, strict=True)
        ]
        return [(p["prediction"], p["confidence"]) for p in self.reader.predict(rows)]


def judge(desk: Desk, rows: Sequence[Row], count: int = 3) -> dict[str, Scores]:
    """How good each part of a desk is, and the whole.

    Args:
      rows: questions with 'text', their intent 'label', their section's 'context', and 'answers'.
      count: sections that are read.

    Returns:
      'intents' the share of those told right; 'sections' the share of the right ones among those
      found, with the recognised intent or without it; 'answers' F1 and exact match of the
      whole, with the right section given, and of the first sentence of the section that fits best.
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
    told = [i == row["label"] for (i, _), row in zip(intents, rows, strict=True)]
    return {
        "intents": {"accuracy": float(np.mean(told))},
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
