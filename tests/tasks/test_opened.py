"""Finished runs predict: the same as they did, on rows with labels and without."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

import lmjax
from lmjax.convert.pretrained import Pretrained
from lmjax.data.rows import Row
from lmjax.errors import ConfigError, NonFiniteError
from lmjax.tasks.classification import Classification, Regression
from lmjax.tasks.finetuning import Result, finetune
from lmjax.tasks.opened import Opened, open_run
from lmjax.tasks.plan import prepare
from lmjax.tasks.question_answering import QuestionAnswering
from lmjax.tasks.tagging import Tagging
from tests.tasks import small

pytest.importorskip("seqeval", reason="seqeval is not installed")


def numbers() -> list[Row]:
    return [
        {"id": i, "first": t, "second": t[::-1], "year": 2000 + len(t)}
        for i, t in enumerate(small.sentences(24))
    ]


def tags() -> list[Row]:
    """Sentences that are longer than a window, too."""
    return [
        {"id": i, "tokens": t.split(), "ner": ["B-A" if w[1] == "a" else "O" for w in t.split()]}
        for i, t in enumerate(small.sentences(24, words=(3, 40)))
    ]


def questions() -> list[Row]:
    """Of some the answer is not in the context."""
    rows = []
    for i, text in enumerate(small.sentences(24, words=(6, 40))):
        words = text.split()
        answers = {"text": [words[2]], "answer_start": [text.index(words[2])]}
        none: dict[str, list[Any]] = {"text": [], "answer_start": []}
        asked = {"id": str(i), "question": words[1], "context": text}
        rows.append({**asked, "answers": none if i % 3 == 0 else answers})
    return rows


def choices() -> list[Row]:
    return [
        {"id": i, "context": t, "choices": [t[::-1], "bak dal", "nok"][: 2 + i % 2], "label": i % 2}
        for i, t in enumerate(small.sentences(24))
    ]


def spans() -> list[Row]:
    return [
        {"id": i, "text": f"bak {t} dol", "a": [0, 3], "b": [len(t) + 5, len(t) + 8], "label": said}
        for i, (t, said) in enumerate(zip(small.sentences(24), 12 * ["R(e1,e2)", "S"], strict=True))
    ]


# The fields of a task, its rows, and which columns of them are the gold.
TASKS: dict[str, tuple[dict[str, Any], list[Row], list[str]]] = {
    "classification.Regression": (
        {"text": "first", "pair": "second", "label": "year"},
        numbers(),
        ["year"],
    ),
    "tagging.Tagging": ({"words": "tokens", "tags": "ner"}, tags(), ["ner"]),
    "question_answering.QuestionAnswering": (
        {"question_length": 4, "stride": 8, "no_answer": True},
        questions(),
        ["answers"],
    ),
    "multiple_choice.MultipleChoice": ({}, choices(), ["label"]),
    "relations.Relations": ({"spans": ("a", "b"), "other": "S"}, spans(), ["label"]),
}


Runs = Callable[[str], tuple[pathlib.Path, Result]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """By the name of a task, a run that is scored on the rows that it learns from."""

    @functools.cache
    def made(name: str) -> tuple[pathlib.Path, Result]:
        task, rows, _ = TASKS[name]
        place = tmp_path_factory.mktemp("run")
        path = small.write_rows(place / "rows.jsonl", rows)
        kind = f"lmjax.tasks.{name}"
        config = small.config({"type": kind, **task}, {"train": path, "validation": path})
        config.training.epochs = 1
        return place / "run", finetune(prepare(config), config, place / "run", "", seed=0)

    return made


def assert_same(found: Row, expected: Row) -> None:
    """All that is expected is found, numbers to 1e-5."""
    for name, value in expected.items():
        if isinstance(value, float):
            scale = max(1.0, abs(value))
            assert found[name] == pytest.approx(value, abs=1e-5 * scale), name
        else:
            assert found[name] == value, name


@pytest.mark.parametrize("name", TASKS)
def test_a_run_opened_again_predicts_as_it_did(name: str, runs: Runs) -> None:
    place, result = runs(name)
    _, rows, gold = TASKS[name]
    told = [json.loads(line) for line in (place / "predictions.jsonl").open()]
    opened = lmjax.load(place)
    found = opened.predict(rows)
    for row, line, before in zip(rows, found, told, strict=True):
        assert row.items() <= line.items()  # its own fields, such as the id, are kept
        del before["where"]
        assert_same(line, before)
    assert opened.task is not None
    assert opened.task.scores(found) == pytest.approx(dict(result.scores), abs=1e-5)

    # Without labels: what does not depend on them is the same, and nothing else is told.
    bare = [{k: v for k, v in row.items() if k not in gold} for row in rows]
    for line, alone in zip(found, opened.predict(bare), strict=True):
        assert "gold" not in alone
        assert "prediction" in alone
        assert_same(alone, {k: line[k] for k in alone})
    # The names that predictions have are columns, too.
    for line, again in zip(found, opened.predict(told), strict=True):
        assert_same(again, {k: line[k] for k in ("prediction", "gold")})
    assert opened.predict([]) == []


@pytest.mark.parametrize("name", TASKS)
def test_a_row_that_cannot_be_used_is_named(name: str, runs: Runs) -> None:
    opened = lmjax.load(runs(name)[0])
    rows = TASKS[name][1][:3]
    with pytest.raises(ConfigError, match=r"rows\[1\]: no column"):
        opened.predict([rows[0], {"id": 7}, rows[2]])
    with pytest.raises(ConfigError, match=r"rows\[0\]: neither a text nor a dict"):
        opened.predict([3])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="got a single row"):
        opened.predict(rows[0])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="embeds no texts"):
        opened.embed(["bak"])


def test_numbers_are_in_their_unit_wherever_the_model_is_read(runs: Runs) -> None:
    """By `lmjax.load`, and in the directory for `transformers`."""
    place, result = runs("classification.Regression")
    assert isinstance(result.task, Regression)
    years = [row["year"] for row in numbers()]
    assert result.task.mean == pytest.approx(np.mean(years))
    assert result.task.scale == pytest.approx(np.std(years))
    models = [lmjax.load(place), lmjax.load(place / "model")]
    tokenizer = models[0].tokenizer
    assert tokenizer is not None
    for row in result.predictions[:2]:
        first, second = tokenizer.encode_batch([row["text"], row["pair"]])
        cls, sep = tokenizer.roles["cls"], tokenizer.roles["sep"]
        tokens = np.array([[cls, *first, sep, *second, sep]])
        segments = np.array([[0] * (len(first) + 2) + [1] * (len(second) + 1)])
        for model in models:
            assert float(model(tokens, segments)[0, 0]) == pytest.approx(row["prediction"], 1e-6)


def test_a_plain_text_is_tagged_and_says_where_its_words_are(runs: Runs) -> None:
    opened = lmjax.load(runs("tagging.Tagging")[0])
    text = "  bak dol,\tnok\u00a0fel\n"
    (found,) = opened.predict([text])
    assert found["words"] == ["bak", "dol,", "nok", "fel"] == text.split()
    assert [text[a:b] for a, b in found["offsets"]] == found["words"]
    assert len(found["prediction"]) == 4
    assert found["text"] == text


def test_a_conll_file_of_words_alone_has_no_tags(runs: Runs) -> None:
    opened = lmjax.load(runs("tagging.Tagging")[0])
    assert isinstance(opened.task, Tagging)
    task = dataclasses.replace(opened.task, words="0", tags="-1")
    words, last = ["bak", "dol"], ["O", "B-A"]
    alone: Any = task.parse({"0": words, "-1": words}, "optional")
    assert alone == {"words": words}
    both: Any = task.parse({"0": words, "-2": words, "1": last, "-1": last}, "optional")
    assert both == {"words": words, "gold": last}


def test_nested_questions_are_answered_one_by_one(runs: Runs) -> None:
    place, _ = runs("question_answering.QuestionAnswering")
    asked = [{k: row[k] for k in ("id", "question")} for row in questions()[:2]]
    context = questions()[0]["context"]
    nested = {"title": "x", "paragraphs": [{"context": context, "qas": asked}]}
    first, second = lmjax.load(place).predict([nested])
    assert (first["id"], second["id"]) == ("0", "1")
    assert first["context"] == second["context"] == context


def test_the_threshold_that_was_chosen_is_the_one_that_is_used(runs: Runs) -> None:
    place, result = runs("question_answering.QuestionAnswering")
    assert isinstance(result.task, QuestionAnswering)
    assert result.task.null_threshold == result.chosen["null_threshold"]
    for p in result.predictions:
        none = p["null_difference"] > result.task.null_threshold
        assert p["prediction"] == ("" if none else p["best_answer"])
    assert result.scores["f1"] == result.chosen["best_f1"] >= result.chosen["f1_at_0"]
    assert json.loads((place / "results.json").read_text())["chosen_on_validation"]
    report = (place / "report.md").read_text()
    assert "Selected by the scores of the 24 validation rows (the same that" in report
    assert f"| as predicted | {result.task.null_threshold:.3f} |" in report


@pytest.mark.parametrize("classes", [1, 3])
def test_a_published_head_predicts(classes: int, tmp_path: pathlib.Path) -> None:
    """A directory of `transformers` alone: what its head is for is its task."""
    tokenizer = small.tokenizer()
    model = small.model("bert", tokenizer.size)
    network = model.headed("sequence_classification", classes, 0.1)
    ids = np.ones((1, 4), np.int32)
    inputs = model.inputs(ids, ids, ids > 0)
    params = jax.jit(network.init)(jax.random.key(0), inputs)
    labels = tuple("abc"[:classes])
    given = Pretrained(network, params["params"], tokenizer, labels)
    lmjax.save_huggingface(given, tmp_path / "model")
    opened = lmjax.load(tmp_path / "model")
    assert type(opened.task) is (Regression if classes == 1 else Classification)
    texts = small.sentences(5)
    for text, found in zip(texts, opened.predict(texts), strict=True):
        tokens = [
            tokenizer.roles["cls"],
            *tokenizer.encode_batch([text])[0],
            tokenizer.roles["sep"],
        ]
        logits = np.asarray(given(np.array([tokens]))[0])
        expected = logits[0] if classes == 1 else labels[int(logits.argmax())]
        assert found["prediction"] == pytest.approx(expected, abs=1e-5)


def test_what_has_no_task_says_so(tmp_path: pathlib.Path) -> None:
    opened = Opened(small.model("bert", 9).headed("next_sentence", 2, 0.0), {})
    with pytest.raises(ConfigError, match="a Headed has no task to predict"):
        opened.predict(["bak"])
    (tmp_path / "config.json").write_text(json.dumps({"tasks": {"a": {}, "b": {}}}))
    with pytest.raises(ConfigError, match=r"a run of several tasks; open one of them, e\.g\. .*a$"):
        lmjax.load(tmp_path)


def test_a_model_that_gives_no_numbers_is_refused(runs: Runs) -> None:
    """A NaN is no prediction, and no score is made of one."""
    name = "multiple_choice.MultipleChoice"
    opened = lmjax.load(runs(name)[0])
    params = jax.tree.map(lambda leaf: leaf * np.nan, opened.params)
    broken = dataclasses.replace(opened, params=params)
    with pytest.raises(NonFiniteError, match="a row: logits: "):
        broken.predict(TASKS[name][1][:2])


@pytest.mark.parametrize("name", TASKS)
def test_a_run_is_opened_for_what_it_is(name: str, runs: Runs) -> None:
    place, result = runs(name)
    kind = type(result.task)
    assert isinstance(open_run(place, kind, "--model").task, kind)
    other = Tagging if kind is QuestionAnswering else QuestionAnswering
    with pytest.raises(ConfigError, match=f"--model: .* a model for {kind.__name__}, not for"):
        open_run(place, other, "--model")
