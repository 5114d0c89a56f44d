"""Minimal pairs: files, ties, intervals, and a model that must be right."""

import gzip
import json
import lzma
import pathlib

import numpy as np
import pytest

from lmjax.convert.ngrams import opened
from lmjax.errors import ConfigError
from lmjax.evaluation.minimal_pairs import (
    Pair,
    Share,
    by_ngrams,
    judge,
    judged,
    mean_of_files,
    read_pairs,
    shares,
    unigram,
)
from lmjax.evaluation.scoring import token_scores
from lmjax.models.gpt import Gpt, GptConfig
from lmjax.models.ngram_estimation import estimate
from tests.words import SIZE, random_model, trunk

PAIRS = [
    Pair("w6 w7", "w7 w6", "order", "syntax"),
    Pair("w8 w9", "w9 w8", "order", "syntax"),
    Pair("w10", "w10", "same", "ties"),
]
MODEL = random_model(Gpt(GptConfig(trunk(norm="pre"), max_length=16, vocab_size=SIZE)))


def test_a_pair_is_right_where_the_good_sentence_is_likelier_and_half_at_a_tie() -> None:
    found = judge(MODEL, PAIRS)
    for pair, value in zip(PAIRS[:2], found[:2], strict=True):
        good, bad = (scores.sum() for scores in token_scores(MODEL, [pair.good, pair.bad]))
        assert value == float(good > bad)
    turned = [Pair(p.bad, p.good, p.paradigm, p.phenomenon) for p in PAIRS]
    np.testing.assert_array_equal(judge(MODEL, turned), 1 - found)
    assert found[2] == 0.5
    np.testing.assert_array_equal(judged(np.array([-1.0, -2.0, -3.0, -3.0])), [1.0, 0.5])


def test_frequencies_prefer_the_frequent_word() -> None:
    counts = np.zeros(SIZE)
    counts[6], counts[7] = 100, 3
    pairs = [Pair("w6", "w7"), Pair("w7", "w6"), Pair("w6 w7", "w7 w6")]
    np.testing.assert_array_equal(unigram(MODEL, pairs, counts), [1.0, 0.0, 0.5])


def test_ngrams_prefer_the_order_that_they_have_read() -> None:
    sentences = [np.array([6, 7]), np.array([9, 8]), np.array([10])] * 5
    texts = np.concatenate(sentences), np.cumsum([0, *map(len, sentences)])
    assert MODEL.tokenizer is not None
    eod = MODEL.tokenizer.roles["eod"]
    found = estimate(texts, SIZE, (eod, eod), order=3, discount_fallback=True)
    ngrams = opened(found.config, found.params, MODEL.tokenizer)
    np.testing.assert_array_equal(by_ngrams(ngrams, PAIRS), [1.0, 0.0, 0.5])
    # The end of the sentence counts too: 7 follows 6 in all of them, and only then does one end.
    pair = Pair("w6 w7", "w6 w7 w7")
    assert by_ngrams(ngrams, [pair]) == judge(ngrams, [pair]) == 1
    prefix = Pair("w6 w7", "w6")
    assert by_ngrams(ngrams, [prefix]) == 1 and judge(ngrams, [prefix]) == 0


def test_shares_are_by_phenomenon_or_paradigm() -> None:
    assert list(shares(PAIRS, np.ones(3), "paradigm")) == ["order", "same", "all"]
    found = shares(PAIRS, np.array([1.0, 0.0, 0.5]))
    assert list(found) == ["syntax", "ties", "all"]
    assert found["syntax"] == Share(1.0, 2) and found["all"] == Share(1.5, 3)
    assert found["all"].accuracy == 0.5


def test_the_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    for p in (0.5, 0.9):
        covered = 0
        for right in rng.binomial(200, p, 2000):
            low, high = Share(float(right), 200).interval
            covered += low <= p <= high
        assert 0.93 < covered / 2000 < 0.97


def test_files_are_read_packed_or_not(tmp_path: pathlib.Path) -> None:
    lines = [
        {"uid": "order", "phenomenon": "syntax", "good": "a b", "bad": "b a", "field": "x"},
        {"UID": "order", "linguistics_term": "syntax", "sentence_good": "c", "sentence_bad": "d"},
    ]
    text = "\n".join(map(json.dumps, lines)) + "\n\n"
    (tmp_path / "p.jsonl").write_text(text)
    with lzma.open(tmp_path / "p.jsonl.xz", "wt") as file:
        file.write(text)
    pairs = read_pairs(tmp_path / "p.jsonl")
    expected = [Pair("a b", "b a", "order", "syntax", "p"), Pair("c", "d", "order", "syntax", "p")]
    assert pairs == expected
    assert read_pairs(tmp_path / "p.jsonl.xz") == pairs
    assert len(read_pairs(tmp_path / "p.jsonl", per_paradigm=1)) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", r"--data: .*p\.jsonl:1: no sentence 'good'"),
        ('{"good": "a", "bad": ""}', "p.jsonl:1: no sentence 'bad'"),
        ('{"good": "a", "bad": "b"}\nnothing', "p.jsonl:2: not JSON"),
        ("[1]", "p.jsonl:1: not a JSON object"),
        ("", "no pair in"),
    ],
)
def test_files_that_are_no_pairs(text: str, message: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "p.jsonl").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_pairs(tmp_path / "p.jsonl")
    with pytest.raises(ConfigError, match=r"--data: no such file"):
        read_pairs(tmp_path / "nowhere")


def test_files_are_paradigms_where_rows_name_none(tmp_path: pathlib.Path) -> None:
    """BabyLM's supplement: a file a subtask, whose rows are two sentences alone."""
    sizes = {"hypernym": 6, "qa_congruence": 2, "turn_taking": 4}
    for name, size in sizes.items():
        row = {"sentence_good": "a b", "sentence_bad": "b a", "UID": None}
        ending = ".jsonl.gz" if name == "turn_taking" else ".jsonl"
        with (gzip.open if ending[-1] == "z" else open)(tmp_path / f"{name}{ending}", "wt") as file:
            file.write((json.dumps(row) + "\n") * size)
    (tmp_path / "README.md").write_text("# About")
    for spec in (tmp_path, tmp_path / "*.jsonl*", tmp_path / "**" / "*.jsonl*"):
        pairs = read_pairs(spec)
        assert [(pair.paradigm, pair.file) for pair in pairs] == [
            (name, name) for name, size in sizes.items() for _ in range(size)
        ]
    right = np.array([1, 1, 1, 0.5, 0, 0, 1, 0, 0, 0, 0, 0])
    found = shares(pairs, right)
    assert {name: share.accuracy for name, share in found.items()} == pytest.approx(
        {"hypernym": 3.5 / 6, "qa_congruence": 0.5, "turn_taking": 0.0, "all": 4.5 / 12}
    )
    assert mean_of_files(pairs, right) == pytest.approx((3.5 / 6 + 0.5 + 0.0) / 3)
    assert len(read_pairs(tmp_path, per_paradigm=2)) == 6


def test_files_of_one_name_are_several(tmp_path: pathlib.Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "p.jsonl").write_text('{"good": "a", "bad": "b"}\n')
    pairs = read_pairs(tmp_path / "*" / "p.jsonl")
    assert len({pair.file for pair in pairs}) == len({pair.paradigm for pair in pairs}) == 2


def test_an_empty_file_among_others_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"good": "a", "bad": "b"}\n')
    (tmp_path / "b.jsonl").write_text("\n")
    with pytest.raises(ConfigError, match=r"no pair in '.*b\.jsonl'"):
        read_pairs(tmp_path)
    (tmp_path / "none").mkdir()
    with pytest.raises(ConfigError, match="is a directory; it has no readable file"):
        read_pairs(tmp_path / "none")
