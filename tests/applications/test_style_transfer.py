"""Markers of a style, deletion, and the choice of a candidate."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pytest

from experiments.applications.style_transfer import (
    alike,
    check_style,
    continue_in_style,
    markers,
    restyle,
    style_scores,
    without_markers,
)
from lmjax.convert.pretrained import Pretrained
from lmjax.data.docstrings import mood_rows
from lmjax.errors import ConfigError
from lmjax.models.bert import BertForPreTraining
from lmjax.models.gpt import Gpt
from lmjax.tasks.classification import Classification
from tests.tasks import small


def rows(*told: tuple[str, str]) -> list[dict[str, str]]:
    return [{"text": text, "gold": style} for text, style in told]


def test_salience_by_hand() -> None:
    train = rows(("Good good food", "good"), ("good bread", "good"), ("bad food", "bad"))
    found = markers(train, "good", smoothing=1.0, threshold=2.0)
    # (count inside + 1) / (count outside + 1): 'good' 4/1, 'food' 2/2, the others once each.
    assert found == {
        ("good",): 4.0,
        ("bread",): 2.0,
        ("good", "good"): 2.0,
        ("good", "food"): 2.0,
        ("good", "bread"): 2.0,
        ("good", "good", "food"): 2.0,
    }
    assert markers(train, "good", threshold=5.0) == {}


def test_what_is_left_without_markers() -> None:
    words = ["the", "very", "good", "food", "was", "very", "good", "and", "cheap"]
    assert without_markers(words, {}) == [words]
    found = without_markers(words, {("very", "good"): 9.0, ("good", "food"): 5.0})
    assert found == [["the"], ["food", "was"], ["and", "cheap"]]
    # The most salient goes first, and what overlaps it is none any more.
    found = without_markers(words, {("very", "good"): 5.0, ("good", "food"): 9.0})
    assert found == [["the", "very"], ["was"], ["and", "cheap"]]
    # Side by side they leave one gap; at the ends an empty piece.
    assert without_markers(["The", "good", "food"], {("the",): 9.0, ("good",): 9.0}) == [
        [],
        ["food"],
    ]
    assert without_markers(["food", "good"], {("good",): 9.0}) == [["food"], []]


class Likes:
    """In place of a judge: the probability of a style grows with the words it likes."""

    def __init__(self, liked: str):
        self.liked = liked
        self.labels = ("no", "yes")

    def predict(self, rows: Sequence[Any]) -> list[dict[str, Any]]:
        shares = [row["text"].split().count(self.liked) + 1 for row in rows]
        return [{"gold_probability": min(0.99, share / 1e6)} for share in shares]


@pytest.fixture(scope="module", params=["bert", "gpt"])
def model(request: pytest.FixtureRequest) -> Pretrained:
    """A random one."""
    tokenizer = small.tokenizer("wordpiece")
    config = small.model(request.param, tokenizer.size)
    network: Any = BertForPreTraining(config, False) if request.param == "bert" else Gpt(config)
    tokens = np.zeros((1, 4), np.int32)
    inputs = config.inputs(tokens, tokens, np.ones_like(tokens, bool))
    init = functools.partial(network.init, method="whole")
    return Pretrained(network, jax.jit(init)(jax.random.key(0), inputs)["params"], tokenizer)


def test_the_candidate_that_the_judge_likes_is_taken(model: Pretrained) -> None:
    word, judge = small.WORDS[5], Likes(small.WORDS[5])
    likes: Any = judge
    if isinstance(model.network, Gpt):
        first, chosen = continue_in_style(model, likes, ["bak", "dol"], "yes", 4, 12, seed=1)
        again = continue_in_style(model, likes, ["bak", "dol"], "yes", 4, 12, seed=1)
        assert (first, chosen) == again
        for a, b, prompt in zip(first, chosen, ("bak", "dol"), strict=True):
            assert a.startswith(prompt) and b.startswith(prompt)
            assert b.split().count(word) >= a.split().count(word)
        return
    texts = ["bak dol fak", "dol dol", "bak dan"]
    made = restyle(model, likes, texts, {("bak",): 20.0}, "yes", candidates=4, seed=1)
    assert made == restyle(model, likes, texts, {("bak",): 20.0}, "yes", candidates=4, seed=1)
    assert made[1] == texts[1]  # nothing to delete
    assert made[0].endswith("dol fak") and made[2].endswith("dan")
    assert not made[0].startswith("bak")
    assert restyle(model, likes, texts, {}, "yes") == texts
    # A mask that the text itself spells out is none.
    assert model.tokenizer is not None
    kept = model.tokenizer.decode(model.tokenizer.encode_batch([" [MASK] dol"])[0])
    (made_of_it,) = restyle(model, likes, ["bak [MASK] dol"], {("bak",): 20.0}, "yes", seed=1)
    assert made_of_it.endswith(kept) and not made_of_it.startswith("bak")


def test_style_scores() -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    pytest.importorskip("sacrebleu", reason="is not installed")
    train = rows(*[("sum it", "a"), ("sums it", "b")] * 8)
    before = ["sum all", "sum none"]
    scores = style_scores(train, before, ["sums all", "sum none"], "b")
    assert (scores["of the style before"], scores["after"]) == (0.0, 0.5)
    assert 50 < scores["chrF"] < 100
    assert math.isclose(style_scores(train, before, before, "b")["chrF"], 100.0)


def test_a_style_that_is_none_is_refused() -> None:
    judge: Any = Likes("x")
    check_style(judge, "yes", "--to")
    with pytest.raises(ConfigError, match="--to: 'maybe' is none of no, yes"):
        check_style(judge, "maybe", "--to")


def test_moods_have_twins() -> None:
    found = list(mood_rows("validation", ""))
    task = Classification(model=small.model("bert"), length=32, vocabulary=None, pydocs="moods")
    learnt = list(task.embedded("validation", ""))
    assert learnt == [{"text": r["text"], "gold": r["label"], "other": r["other"]} for r in found]
    assert {row["label"] for row in found} == {"descriptive", "imperative"}
    for row in found:
        (first, *rest), (other, *same) = row["text"].split(), row["other"].split()
        assert rest == same
        assert other == (first[:-1] if row["label"] == "descriptive" else f"{first}s")


def test_alike_but_for_spaces_and_case() -> None:
    assert alike("Sum (a, b)", "sum ( a , b )")
    assert not alike("Sum a", "Sums a")
