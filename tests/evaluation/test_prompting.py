"""Templates, shots, and answers against scores taken one by one."""

import csv
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from configs import prompting as configured
from lmjax.data import docstrings
from lmjax.data.rows import BadRowError, Notes
from lmjax.errors import ConfigError
from lmjax.evaluation.prompting import (
    NORMALISATIONS,
    Questions,
    Template,
    answer,
    chance,
    draw_shots,
    majority,
    read_questions,
)
from lmjax.evaluation.scoring import token_scores
from lmjax.models.bert import BertConfig, BertForPreTraining
from lmjax.models.gpt import Gpt, GptConfig
from tests.words import SIZE, random_model, trunk

MODELS = {
    "gpt": random_model(Gpt(GptConfig(trunk(norm="pre"), max_length=24, vocab_size=SIZE))),
    "bert": random_model(BertForPreTraining(BertConfig(trunk(), max_length=24, vocab_size=SIZE))),
}
WORDS = ("w20", "w21 w22", "w23")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """train.csv and test.csv with texts and labels, and choices.jsonl."""
    place = tmp_path_factory.mktemp("rows")
    rng = np.random.default_rng(0)
    for name, count in (("train", 12), ("test", 7)):
        with (place / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "kind"])
            for i in range(count):
                kind = "abc"[min(i % 4, 2)]  # c is the commonest
                writer.writerow([f"w{rng.integers(6, 20)} w{rng.integers(6, 20)}", kind])
    rows = [{"q": "w6 w7", "one": "w8", "two": "w9 w10", "gold": i % 2} for i in range(3)]
    (place / "choices.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {path.stem: str(path) for path in place.iterdir()}


def config(files: dict[str, str], **template: Any) -> dict[str, Any]:
    given = {
        "prompt": "{text} w19",
        "label": "kind",
        "labels": ("a", "b", "c"),
        "words": WORDS,
        "separator": " ",
        "unconditional": "w18",
    }
    made = configured.get_config("classification").to_dict()
    made["template"] |= given | template
    made["data"] |= {"train": files["train"], "test": files["test"]}
    return made


@pytest.mark.parametrize("name", MODELS)
def test_answers_are_those_of_scores_taken_one_by_one(name: str, files: dict[str, str]) -> None:
    model = MODELS[name]
    questions = read_questions(config(files, shots=2))
    found = answer(model, questions)

    def score(context: str, choice: str) -> tuple[float, int]:
        (scores,) = token_scores(model, [f"{context} {choice}"])
        count = len(choice.split())
        return float(scores[-count:].sum()), count

    for i, row in enumerate(questions.rows):
        examples = draw_shots(questions, i)
        shown = [f"{e['prompt']} {WORDS[e['gold']]} " for e in examples]
        context = "".join([*shown, row["prompt"]])
        pairs = [score(context, word) for word in WORDS]
        expected = {
            "sum": [s for s, _ in pairs],
            "token": [s / n for s, n in pairs],
            "byte": [s / len(w) for (s, _), w in zip(pairs, WORDS, strict=True)],
            "unconditional": [
                s - score("w18", w)[0] for (s, _), w in zip(pairs, WORDS, strict=True)
            ],
        }
        for kind in NORMALISATIONS:
            np.testing.assert_allclose(found.scores[kind][i], expected[kind], atol=1e-4)
            hit = float(int(np.argmax(expected[kind])) == row["gold"])
            assert found.right[kind][i] == hit
    assert found.cut == 0
    assert found.share("sum").right == found.right["sum"].sum()


def test_shots_are_drawn_by_seed_and_row_and_never_the_row_itself(files: dict[str, str]) -> None:
    made = config(files, shots=11)
    made["data"]["test"] = made["data"]["train"]
    questions = read_questions(made)
    for i, row in enumerate(questions.rows):
        drawn = [e["where"] for e in draw_shots(questions, i)]
        assert row["where"] not in drawn and len(set(drawn)) == 11
    again = read_questions(made)
    assert draw_shots(questions, 3) == draw_shots(again, 3)
    assert draw_shots(questions, 3) != draw_shots(questions, 4)
    assert draw_shots(read_questions({**made, "seed": 1}), 3) != draw_shots(questions, 3)
    made["template"]["shots"] = 12
    with pytest.raises(
        ConfigError,
        match=r"shots: 12, but config\.data\.train has only 11",
    ):
        draw_shots(read_questions(made), 0)


def test_too_long_a_prompt_is_cut_and_counted(files: dict[str, str]) -> None:
    assert answer(MODELS["gpt"], read_questions(config(files, shots=6))).cut == 7


def test_a_choice_that_does_not_fit_is_no_answer() -> None:
    template = Template(prompt="{q}", choices=("a", "b"))
    short = template.parse({"q": "w6", "a": "w7", "b": "w8", "label": 0})
    long = template.parse({"q": "w6", "a": "w7", "b": "w8 " * 24, "label": 0})
    rows = [{**row, "where": str(i)} for i, row in enumerate([short, long, short])]
    found = answer(MODELS["gpt"], Questions(template, rows, [], 0, Notes()))
    assert found.unanswered == 1 and found.cut == 0
    assert found.scores["token"][1] is None
    alone = answer(MODELS["gpt"], Questions(template, rows[:1], [], 0, Notes()))
    for kind in NORMALISATIONS:
        expected = float(alone.right[kind][0])
        assert found.right[kind].tolist() == [expected, expected]
        assert found.share(kind).count == 2
    with pytest.raises(ConfigError, match="every row has a choice that is longer"):
        answer(MODELS["gpt"], Questions(template, rows[1:2], [], 0, Notes()))


def test_simple_rules(files: dict[str, str]) -> None:
    questions = read_questions(config(files))
    golds = [row["gold"] for row in questions.rows]
    assert majority(questions).right == golds.count(2)
    assert chance(questions) == pytest.approx(1 / 3)


def test_choices_may_be_a_list_or_columns(files: dict[str, str]) -> None:
    values = {"q": "x", "list": ["y", "z"], "one": "y", "two": "z", "gold": "1"}
    for choices in (("list",), ("one", "two")):
        template = Template(prompt="{{{q}}}", label="gold", choices=choices)
        assert template.parse(values) == {"prompt": "{x}", "choices": ["y", "z"], "gold": 1}
    made = config(files, prompt="{q}", label="gold", labels=(), words=(), choices=("one", "two"))
    made["data"] |= {"train": files["choices"], "test": files["choices"]}
    assert [row["gold"] for row in read_questions(made).rows] == [0, 1, 0]


def test_equal_choices_share_the_answer() -> None:
    template = Template(prompt="{q}", choices=("a", "b", "c"))
    row = template.parse({"q": "w6", "a": "w7", "b": "w7", "c": "w7", "label": 0})
    questions = Questions(template, [row | {"where": ""}], [], 0, Notes())
    assert answer(MODELS["gpt"], questions).right["sum"].tolist() == [1 / 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "no column"}, r"template\.prompt: 'no column': expected \{column\}"),
        ({"prompt": "{text!r}"}, r"template\.prompt: '\{text!r\}'"),
        ({"prompt": "{text"}, r"template\.prompt: expected '\}'"),
        ({"labels": ()}, r"template\.labels: set either"),
        ({"words": ("a",)}, r"template\.words: 1 for 3 labels"),
        ({"words": ("a", "a", "b")}, r"template\.words: .* distinct values"),
        ({"shots": -1}, r"template\.shots: must not be negative"),
        ({"shotz": 1}, r"template\.shotz: unknown field of Template; did you mean 'shots'"),
        ({"prompt": "{textt}"}, r"no column 'textt' \(config\.template\.prompt"),
        ({"labels": ("a", "x", "y")}, "label 'b' is not in config.template.labels"),
        ({"unconditional": " "}, r"template\.unconditional: empty"),
    ],
)
def test_templates_that_cannot_work(
    change: dict[str, Any], message: str, files: dict[str, str]
) -> None:
    with pytest.raises(ConfigError, match=message):
        read_questions(config(files, **change))


def test_fields_that_are_not_there(files: dict[str, str]) -> None:
    made = config(files)
    with pytest.raises(ConfigError, match=r"config\.seeds: unknown"):
        read_questions({**made, "seeds": 1})
    with pytest.raises(ConfigError, match=r"config\.rows: expected int, got 1\.5"):
        read_questions({**made, "rows": 1.5})
    del made["data"]
    with pytest.raises(ConfigError, match=r"config\.data: missing"):
        read_questions(made)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"q": "x", "list": ["y"], "gold": 0}, "fewer than two"),
        ({"q": "x", "list": ["y", " "], "gold": 0}, "an empty choice"),
        ({"q": "x", "list": ["y", "z"], "gold": 2}, "label 2 is out of range for 2 choices"),
        ({"q": "x", "list": ["y", "z"], "gold": "B"}, "no number in column 'gold'"),
        ({"q": ["x"], "list": ["y", "z"], "gold": 0}, "no text in column 'q'"),
        ({"list": ["y", "z"], "gold": 0}, "no column 'q'"),
    ],
)
def test_rows_that_cannot_be_asked(values: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRowError, match=message):
        Template(prompt="{q}", label="gold", choices=("list",)).parse(values)


def test_the_embedded_rows_make_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(split: str, cache_dir: str) -> Iterator[dict[str, Any]]:
        for i in range(9):
            yield {"context": f"{split} {i}", "choices": ["w6", "w7"], "label": i % 2}

    monkeypatch.setattr(docstrings, "description_rows", rows)
    made = configured.get_config().to_dict()
    questions = read_questions({**made, "rows": 4})
    assert len(questions.rows) == 4 and len(questions.examples) == 9
    assert all(row["prompt"].startswith("test ") for row in questions.rows)
    assert all(row["prompt"].startswith("train ") for row in questions.examples)
