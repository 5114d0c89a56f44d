"""The command: tables of what the functions find; what is wrong is one line."""

import json
import pathlib
from typing import Any

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

import lmjax
from configs import prompting as configured
from experiments import evaluate
from lmjax.errors import ConfigError
from lmjax.evaluation.continuations import last_words
from lmjax.evaluation.minimal_pairs import judge, read_pairs
from lmjax.evaluation.perplexity import perplexity
from lmjax.evaluation.prompting import NORMALISATIONS, answer, read_questions
from lmjax.models.electra import Electra, ElectraConfig
from lmjax.models.gpt import Gpt, GptConfig
from lmjax.models.xlnet import Xlnet, XlnetConfig
from tests.words import SIZE, random_model, trunk

MODELS: dict[str, Any] = {
    "gpt": Gpt(GptConfig(trunk(norm="pre"), max_length=24, vocab_size=SIZE)),
    "xlnet": Xlnet(XlnetConfig(trunk(), vocab_size=SIZE)),
    "electra": Electra(ElectraConfig(trunk(activation="gelu"), max_length=24, vocab_size=SIZE)),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Two models, pairs, a corpus and rows."""
    place = tmp_path_factory.mktemp("evaluate")
    for name, network in MODELS.items():
        lmjax.save_huggingface(random_model(network), place / name)
    rng = np.random.default_rng(0)

    def words(count: int) -> str:
        return " ".join(f"w{i}" for i in rng.integers(6, SIZE, count))

    pairs = [
        {"good": words(4), "bad": words(4), "uid": f"p{i % 2}", "phenomenon": "all of it"}
        for i in range(6)
    ]
    (place / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    (place / "corpus.txt").write_text("\n\n".join(words(30) for _ in range(150)))
    rows = [{"text": words(3), "label": i % 2} for i in range(5)]
    (place / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return place


def run(capsys: pytest.CaptureFixture[str], place: pathlib.Path, **values: Any) -> str:
    flags.FLAGS.mark_as_parsed()
    values.setdefault("out", str(place / "out" / "found"))
    with flagsaver.flagsaver(**values):
        evaluate.main()
    return capsys.readouterr().out


def lines(place: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (place / "out/found.jsonl").read_text().splitlines()]


def test_minimal_pairs(place: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = str(place / "corpus.txt")
    printed = run(
        capsys,
        place,
        data=str(place / "pairs.jsonl"),
        model=[str(place / "gpt"), str(place / "xlnet")],
        method=["causal", "pseudo", "left_to_right"],
        unigram=corpus,
        trigram=corpus,
    )
    columns = ["gpt (causal)", "unigram, tokens of gpt", "trigram, tokens of gpt"]
    columns += ["xlnet (pseudo)", "xlnet (left_to_right)"]
    found = lines(place)
    assert list(found[0])[5:] == columns
    expected = judge(lmjax.load(place / "gpt"), read_pairs(place / "pairs.jsonl"))
    assert [line["gpt (causal)"] for line in found] == expected.tolist()
    table = (place / "out/found.md").read_text()
    assert table.startswith(f"| phenomenon | pairs | {' | '.join(columns)} |\n")
    assert "| p1 | 3 |" in table and f"{expected.mean():.1%} (" in table
    assert all(column.split()[0] in printed for column in columns)


def test_perplexity(place: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = place / "corpus.txt"
    run(capsys, place, task="perplexity", data=str(corpus), model=[str(place / "gpt")], stride=5)
    (found,) = lines(place)
    documents = corpus.read_text().split("\n\n")
    assert found["tokens"] == 30 * len(documents)
    expected = perplexity(lmjax.load(place / "gpt"), documents, stride=5)
    assert found["nats"] == pytest.approx(expected.nats)


def test_several_files_of_pairs(place: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = place / "supplement"
    folder.mkdir()
    listed = [json.loads(line) for line in (place / "pairs.jsonl").read_text().splitlines()]
    for name, rows in {"first": listed[:1], "second": listed[1:]}.items():
        bare = ({"sentence_good": r["good"], "sentence_bad": r["bad"]} for r in rows)
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, bare)))
    for data in (str(folder), f"{folder}/*.jsonl"):
        printed = run(capsys, place, data=data, model=[str(place / "gpt")])
        right = judge(lmjax.load(place / "gpt"), read_pairs(place / "pairs.jsonl"))
        mean = (right[0] + right[1:].mean()) / 2
        table = (place / "out/found.md").read_text()
        assert f"| first | 1 | {right[0]:.1%} |" in table and "| second | 5 |" in table
        assert f"| mean of 2 files |  | {mean:.1%} |" in table
        assert "mean of 2 files" in printed and "second" in printed
        assert [line["file"] for line in lines(place)] == ["first"] + 5 * ["second"]


def test_last_word(place: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"passage": f"w{6 + i} w8 w{7 + i % 3}"} for i in range(9)] + [{"passage": "w6"}]
    (place / "passages.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given: dict[str, Any] = {"task": "last_word", "data": str(place / "passages.jsonl")}
    given |= {"text_feature": "passage", "model": [str(place / "gpt"), str(place / "xlnet")]}
    with pytest.raises(ConfigError, match=r"passages.jsonl:10: no word before the last one"):
        run(capsys, place, **given)
    printed = run(capsys, place, on_bad_rows="skip", **given)
    assert "no word before the last one: 1 rows, e.g. passages.jsonl:10" in printed
    found = lines(place)
    assert len(found) == 18 and {line["model"] for line in found} == {"gpt", "xlnet"}
    pairs = [(f"w{6 + i} w8", f" w{7 + i % 3}") for i in range(9)]
    expected = last_words(lmjax.load(place / "gpt"), pairs)
    assert [line["right"] for line in found[:9]] == expected.right.tolist()
    np.testing.assert_allclose([line["nats"] for line in found[:9]], expected.nats, atol=1e-5)
    share, table = expected.share, (place / "out/found.md").read_text()
    low, high = share.interval
    cells = f"| gpt (causal) | 9 | {share.accuracy:.1%} ({low:.1%} to {high:.1%}) |"
    assert f"{cells} {expected.perplexity:,.2f} | 0 |" in table


def test_json_lines_are_scored_as_the_text_they_hold(
    place: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = (place / "corpus.txt").read_text().split("\n\n")[:20]
    (place / "c.jsonl").write_text("\n".join(json.dumps({"body": text}) for text in documents))
    given: dict[str, Any] = {"task": "perplexity", "model": [str(place / "gpt")]}
    given |= {"data": str(place / "c.jsonl")}
    with pytest.raises(ConfigError, match=r"c.jsonl:1: no text in column 'text' .*--text_feature"):
        run(capsys, place, **given)
    run(capsys, place, text_feature="body", **given)
    (found,) = lines(place)
    assert found["tokens"] == 30 * 20
    expected = perplexity(lmjax.load(place / "gpt"), documents)
    assert found["nats"] == pytest.approx(expected.nats)


def test_prompting(place: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = configured.get_config("classification")
    config.template.update({"prompt": "{text} w9", "words": ("w7", "w8 w8"), "separator": " "})
    config.template.update({"shots": 1, "unconditional": "w6"})
    config.data.update({"train": str(place / "rows.jsonl"), "test": str(place / "rows.jsonl")})
    file = place / "config.py"
    file.write_text(f"def get_config():\n    return {config.to_dict()!r}\n")
    models = [str(place / name) for name in ("gpt", "electra")]
    printed = run(capsys, place, task="prompting", model=models, config=str(file))
    found = lines(place)
    assert len(found) == 10
    expected = answer(lmjax.load(place / "gpt"), read_questions(config.to_dict()))
    for name in NORMALISATIONS:
        np.testing.assert_allclose(found[3][name], expected.scores[name][3], atol=1e-5)
    assert "The first of 5 prompts" in printed
    assert "most frequent in train" in printed and "chance" in printed


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": []}, "--model: missing"),
        ({"data": ""}, "--data: missing"),
        ({"method": ["pseudo"]}, "--method: a Gpt does not support pseudo; use causal"),
        ({"method": ["psuedo"]}, "--method: 'psuedo' is not one of causal, discriminator"),
        ({"task": "prompting"}, r"--config: missing; .*configs/prompting\.py"),
        ({"task": "harness"}, "--harness_tasks: missing"),
    ],
)
def test_what_is_wrong_is_told(
    values: dict[str, Any],
    message: str,
    place: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = {"model": [str(place / "gpt")], "data": str(place / "pairs.jsonl")} | values
    with pytest.raises(ConfigError, match=message):
        run(capsys, place, **given)
