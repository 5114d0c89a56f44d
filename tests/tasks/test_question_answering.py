"""SQuAD: parsing, windows, answers found by brute force, no answer."""

import dataclasses
import itertools
import json
import pathlib
from typing import Any

import numpy as np
import pytest

from lmjax.data.rows import BadRowError, Notes, RowsConfig, read_split
from lmjax.errors import ConfigError
from lmjax.tasks.input_format import spans, widest_windows
from lmjax.tasks.question_answering import (
    QuestionAnswering,
    best_spans,
    trimmed,
)
from tests.tasks import small

TOKENIZER = small.tokenizer()
CONTEXT = "Bak dal, fem gil. Don bul!\nNever nok."


def task(family: str = "bert", **fields: Any) -> QuestionAnswering:
    vocabulary = small.vocabulary(TOKENIZER)
    model = small.model(family, vocabulary.size)
    chosen = {"length": 16, "question_length": 6, "stride": 4, **fields}
    return QuestionAnswering(vocabulary=vocabulary, model=model, **chosen)


def article(*questions: dict[str, Any]) -> dict[str, Any]:
    return {"title": "x", "paragraphs": [{"context": CONTEXT, "qas": list(questions)}]}


def question(text: str = "fem gil", start: int = 9, **more: Any) -> dict[str, Any]:
    answers = [{"text": text, "answer_start": start}] if text else []
    return {"id": "1", "question": "gil bak?", "answers": answers, **more}


def test_a_bad_question_is_named_by_its_id(tmp_path: pathlib.Path) -> None:
    good, bad = question(id="good"), question(text="nowhere", id="5f-a")
    twice = json.dumps(question(id="twice")).replace('"question"', '"id": "x", "question"')
    text = json.dumps({"data": [article(good, good), article(good, bad, {"TWICE": 0})]})
    path = tmp_path / "s.json"
    path.write_text(text.replace('{"TWICE": 0}', twice))
    config = RowsConfig(train="none.csv", test=str(path))
    with pytest.raises(ConfigError) as caught:
        read_split(config, "test", task().parse, lambda *_: iter(()), Notes())
    message = str(caught.value)
    assert "2 of 5 rows" in message
    assert "s.json[2], question '5f-a': the answer is not in the context" in message
    assert "s.json[2]: two values are named 'id'" in message
    config = dataclasses.replace(config, on_bad_rows="skip")
    notes = Notes()
    assert len(read_split(config, "test", task().parse, lambda *_: iter(()), notes)) == 3
    assert sum(notes.counts.values()) == 2


def test_nested_and_flat_rows_are_the_same() -> None:
    (nested,) = task().parse(article(question()))
    flat = task().parse(
        {
            "id": "1",
            "question": "gil bak?",
            "context": CONTEXT,
            "answers": {"text": ["fem gil"], "answer_start": [9]},
        }
    )
    assert nested == flat
    assert nested["gold"] == ["fem gil"]  # type: ignore[index]


def test_bad_questions_are_told_one_by_one() -> None:
    found = task().parse(
        article(
            question(),
            question(start=8),
            question(start=400),
            question(text=""),
            question(text=" ", start=3),
            {"question": "x"},
            {"question": " ", "answers": []},
            question(answers=[{"text": "Bak"}]),
        )
    )
    told = [str(row) if isinstance(row, BadRowError) else "good" for row in found]
    assert told[0] == "good"
    assert "not in the context at its start ('fem gil')" in told[1]
    assert "not in the context" in told[2]
    assert "no answer (config.task.no_answer=true" in told[3]
    assert told[4] == "empty answer"
    assert "no answer" in told[5]
    assert told[6] == "empty question"
    assert "answers are not in SQuAD's format" in told[7]
    with pytest.raises(BadRowError, match="paragraphs are not in SQuAD's format"):
        task().parse({"paragraphs": [{"qas": 3, "context": CONTEXT}]})
    (row,) = task(no_answer=True).parse(article(question(is_impossible=True)))
    assert row["gold"] == []  # type: ignore[index]


def test_windows_cover_all_and_each_token_has_its_widest() -> None:
    for count, room, stride in itertools.product((0, 1, 9, 10, 11, 37), (3, 10), (1, 4, 20)):
        windows = spans(count, room, stride)
        assert windows[-1][1] == count
        assert all(end - begin <= room for begin, end in windows)
        assert {i for begin, end in windows for i in range(begin, end)} == set(range(count))
        begins = [begin for begin, _ in windows]
        assert all(b - a == min(stride, room) for a, b in itertools.pairwise(begins))
        widest = widest_windows(windows, count)
        for place in range(count):  # run_squad.py, _check_is_max_context
            best, best_score = None, None
            for w, (begin, end) in enumerate(windows):
                if not begin <= place < end:
                    continue
                score = min(place - begin, end - 1 - place) + 0.01 * (end - begin)
                if best_score is None or score > best_score:
                    best, best_score = w, score
            assert widest[place] == best


@pytest.mark.parametrize("family", small.FAMILIES)
@pytest.mark.parametrize("text", ["fem gil", "Bak", "Never nok.", "gil. Don"])
def test_the_true_logits_give_the_answer_back(family: str, text: str) -> None:
    made = task(family, length=20)
    rows = [made.parse(question(text, CONTEXT.index(text), context=CONTEXT))]
    examples = made.encode(rows, TOKENIZER, Notes(), training=True)
    assert len(examples) > 1
    outputs = []
    for example in examples:
        null = made._null(example["tokens"])
        assert example["tokens"][null] == made.vocabulary.cls
        assert example["starts"].sum() == example["ends"].sum() == 1
        begin = CONTEXT.index(text)
        at = example["from"] == begin, example["to"] == begin + len(text)
        outputs.append({"logits": np.stack(at, -1).astype(float)})
        whole = at[0].any() and at[1].any()
        assert whole == (not example["starts"][null])
        assert not whole or (
            (example["starts"] == at[0]).all() and (example["ends"] == at[1]).all()
        )
    (found,) = made.predict(rows, examples, outputs)
    assert found["prediction"] == text
    assert made.scores([found]) == {"f1": 1, "exact": 1}


def test_best_spans_are_those_of_brute_force() -> None:
    made = task(n_best=40, answer_length=4)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        logits = rng.standard_normal((12, 2))
        begins = np.where((np.arange(12) > 2) & (np.arange(12) < 11), 5 * np.arange(12), -1)
        ends = np.where(begins >= 0, begins + 4, -1)
        widest = rng.integers(0, 2, 12)
        expected = {
            (float(logits[i, 0] + logits[j, 1]), int(begins[i]), int(ends[j]))
            for i in range(3, 11)
            for j in range(i, min(i + 4, 11))
            if widest[i]
        }
        assert set(best_spans(logits, begins, ends, widest, made)) == expected
        few = best_spans(logits, begins, ends, widest, dataclasses.replace(made, n_best=2))
        assert len(few) <= 4


def test_no_answer_wins_where_cls_scores_higher_by_the_threshold() -> None:
    made = task(no_answer=True, length=40)
    rows = [made.parse(question(context=CONTEXT))]
    examples = made.encode(rows, TOKENIZER, Notes(), training=False)
    assert len(examples) == 1
    logits = np.zeros((len(examples[0]["tokens"]), 2))
    logits[made._null(examples[0]["tokens"])] = 0.5  # 1 in all, against 0
    for threshold, empty in ((0.9, True), (1.1, False)):
        chosen = dataclasses.replace(made, null_threshold=threshold)
        (found,) = chosen.predict(rows, examples, [{"logits": logits}])
        assert (found["prediction"] == "") == empty
    found = {"prediction": "Bak"}
    scores = made.scores([found | {"gold": []}, found | {"gold": ["bak!"]}])
    assert scores == {"f1": 0.5, "exact": 0.5, "f1_answer": 1, "f1_no_answer": 0}


def test_spaces_at_the_start_of_tokens_are_no_part_of_them() -> None:
    begins, ends = trimmed(np.array([[0, 1], [1, 3], [3, 5]]), "a b  ")
    assert begins.tolist() == [0, 2, 5]
    assert ends.tolist() == [1, 3, 5]


def test_long_questions_are_cut_and_counted() -> None:
    made, notes = task(), Notes()
    long = question(context=CONTEXT) | {"question": " ".join(small.WORDS[:20])}
    rows = [made.parse(long)]
    examples = made.encode(rows, TOKENIZER, notes, training=True)
    assert notes.counts["questions cut to 6 tokens"] == 1
    assert notes.counts["contexts read in windows"] == 1
    assert max(len(e["tokens"]) for e in examples) <= 16
