"""The support desk: search, the choice of an answer, and scores."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from experiments.applications.desk import Desk, Section, evaluate, read_sections
from lmjax.data.docstrings import CLASSES, intent_rows
from lmjax.errors import ConfigError
from lmjax.tasks.classification import Classification
from lmjax.tasks.finetuning import finetune
from lmjax.tasks.opened import open_run
from lmjax.tasks.plan import prepare
from lmjax.tasks.question_answering import QuestionAnswering
from tests.tasks import small

pytest.importorskip("sklearn", reason="scikit-learn is not installed")

SECTIONS = [
    Section("money", "fares", "What a ticket costs.\nA ticket costs two pounds."),
    Section("time", "table", "When a train runs.\nA train runs every hour."),
    Section("time", "night", "What a ticket allows.\nA ticket allows an hour of travel."),
]


class Says:
    """In place of a run: what it says of a row."""

    def __init__(self, say: Any):
        self.say, self.task = say, type("Task", (), {"labels": ("money", "time")})

    def predict(self, rows: Sequence[Any]) -> list[dict[str, Any]]:
        return [dict(zip(("prediction", "confidence"), self.say(r), strict=True)) for r in rows]


def desk(intent: str = "time", confidence: float = 1.0) -> Desk:
    classifier: Any = Says(lambda row: (intent, confidence))
    reader: Any = Says(lambda row: (row["context"].split("\n")[1], 0.5))
    return Desk(classifier, reader, SECTIONS)


def test_search_by_hand() -> None:
    one = desk()
    question = "What does a ticket cost?"
    (found,) = one.search([question], None, 3)
    similar = dict(found)
    assert [s for s, _ in found][:2] == [0, 2]
    assert list(similar.values()) == sorted(similar.values(), reverse=True)
    (raised,) = one.search([question], [("time", 0.5)], 3)
    assert dict(raised) == pytest.approx({0: similar[0], 2: 1.5 * similar[2], 1: 1.5 * similar[1]})
    assert one.search([question], None, 1) == [found[:1]]
    assert one.search(["zzz"], None, 3) == [[]]


def test_the_answer_is_the_best_of_the_sections_read() -> None:
    question = "What does a ticket cost?"
    (sure,) = desk("time").answer([question], 2)
    assert (sure.intent, sure.confidence) == ("time", 1.0)
    assert sure.section == SECTIONS[2]
    assert sure.text == "A ticket allows an hour of travel."
    ((_, similarity),) = desk().search([question], [("time", 1.0)], 1)[0]
    assert sure.score == pytest.approx(0.5 * similarity)
    (unsure,) = desk("time", 0.01).answer([question], 2)
    assert unsure.section == SECTIONS[0]
    (none,) = desk().answer(["zzz"])
    assert (none.section, none.text, none.score) == (None, "", 0.0)


def test_scores_by_hand() -> None:
    rows = [
        {
            "text": "What does a ticket cost?",
            "label": "money",
            "context": SECTIONS[0].text,
            "answers": ["two pounds"],
        },
        {
            "text": "When runs the train?",
            "label": "time",
            "context": SECTIONS[1].text,
            "answers": ["A train runs every hour."],
        },
    ]
    scores = evaluate(desk("time"), rows, 2)
    assert scores["intents"] == {"accuracy": 0.5}
    assert scores["sections, without the intent"] == {"first 1": 1.0, "first 2": 1.0}
    assert scores["sections, with the intent"] == {"first 1": 0.5, "first 2": 1.0}
    assert scores["answers: right section given"]["exact"] == 0.5
    assert scores["answers: right section given"]["f1"] > 0.5
    assert scores["answers: the desk"]["exact"] == 0.5


def test_what_cannot_be_searched_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match="sections: none"):
        Desk(desk().classifier, desk().reader, [])
    file = tmp_path / "sections.jsonl"
    file.write_text('{"intent": "a", "source": "b", "text": "c"}\n{"intent": "a"}\n')
    with pytest.raises(ConfigError, match=r"sections.jsonl:2: no 'source'"):
        read_sections(str(file))
    with pytest.raises(ConfigError, match="no such file"):
        read_sections(str(tmp_path / "none.jsonl"))


def test_questions_have_an_intent_and_their_section() -> None:
    rows = list(intent_rows("validation", ""))
    task = Classification(model=small.model("bert"), length=32, vocabulary=None, pydocs="intents")
    learnt = list(task.embedded("validation", ""))
    assert learnt == [{"text": row["text"], "gold": row["label"]} for row in rows]
    assert len({row["label"] for row in rows}) > CLASSES // 2
    for row in rows:
        subpackage, function, name = row["asked"]
        assert row["label"] == subpackage
        assert name in row["text"] and function in row["text"]
        assert all(answer in row["context"] for answer in row["answers"])


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run that tells 'bak' from 'dol', the first words."""
    place = tmp_path_factory.mktemp("classifier")
    rows = small.write_rows(place / "rows.jsonl", small.labelled(96))
    config = small.config(
        {"type": "lmjax.tasks.classification.Classification"}, {"train": rows, "validation": rows}
    )
    config.training.epochs = 4
    finetune(prepare(config), config, place / "run", "", seed=0)
    return place / "run"


def test_a_run_is_opened_for_what_it_is(classifier: pathlib.Path) -> None:
    opened = open_run(classifier, Classification, "--intents")
    rows = opened.held_out()
    assert len(rows) == 96
    told = opened.predict([{"text": row["text"], "gold": "no"} for row in rows])
    by_prediction = [p["prediction"] for p in told]
    assert np.mean([p == row["gold"] for p, row in zip(by_prediction, rows, strict=True)]) > 0.9
    for p in told:
        sure = p["gold_probability"] if p["prediction"] == "no" else 1 - p["gold_probability"]
        assert p["confidence"] == pytest.approx(sure, abs=1e-5)
    assert opened.predict([]) == []
    with pytest.raises(ConfigError, match=r"--answers: .* a model for Classification, not"):
        open_run(classifier, QuestionAnswering, "--answers")
