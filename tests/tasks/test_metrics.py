"""Scores against scikit-learn and the official SQuAD script's own rules."""

import numpy as np
import pytest

from lmjax.tasks.metrics import (
    answer_scores,
    class_scores,
    confusion,
    correlations,
    normalise_answer,
    span_scores,
)


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_class_scores_are_scikit_learns(classes: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    for seed in range(10):
        rng = np.random.default_rng(seed)
        labels = [f"c{i}" for i in range(classes)]
        gold = [labels[i] for i in rng.integers(0, max(1, classes - seed % 2), 30)]
        guess = [g if rng.random() < 0.5 else labels[rng.integers(classes)] for g in gold]
        found = class_scores(confusion(gold, guess, labels))
        assert found["accuracy"] == pytest.approx(metrics.accuracy_score(gold, guess))
        assert found["macro_f1"] == pytest.approx(metrics.f1_score(gold, guess, average="macro"))
        assert found["matthews"] == pytest.approx(metrics.matthews_corrcoef(gold, guess))


def test_one_class_for_all_correlates_with_nothing() -> None:
    found = class_scores(confusion(["a", "b"], ["a", "a"], ["a", "b"]))
    assert found == {"accuracy": 0.5, "macro_f1": pytest.approx(1 / 3), "matthews": 0.0}
    assert correlations([1, 2, 3], [5, 5, 5]) == {"correlation": 0, "pearson": 0, "spearman": 0}


def test_correlations() -> None:
    found = correlations([1, 2, 3, 4], [1, 4, 9, 16])
    assert found["spearman"] == pytest.approx(1)
    assert found["pearson"] == pytest.approx(np.corrcoef([1, 2, 3, 4], [1, 4, 9, 16])[0, 1])


def test_answers_are_normalised_as_the_official_script_does() -> None:
    assert normalise_answer("  The Cat, an  `owl' and A Theory!") == "cat owl and theory"
    assert answer_scores("the cat", ["a dog", "Cat."]) == (1, 1)
    exact, f1 = answer_scores("black cat sat", ["the black cat"])
    assert exact == 0
    assert f1 == pytest.approx(2 * (2 / 3) * 1 / (2 / 3 + 1))
    assert answer_scores("", []) == (1, 1)
    assert answer_scores("cat", []) == (0, 0)
    assert answer_scores("", ["cat"]) == (0, 0)
    assert answer_scores("the", ["a"]) == (1, 1)  # nothing is left on either side


def test_spans_count_whole() -> None:
    pytest.importorskip("seqeval", reason="seqeval is not installed")
    gold = [["B-X", "I-X", "O", "B-Y"]]
    assert span_scores(gold, gold)["span_f1"] == 1
    found = span_scores(gold, [["B-X", "O", "O", "B-Y"]])
    assert found["precision"] == found["recall"] == 0.5
