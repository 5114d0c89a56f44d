"""The threshold of the null score: the official script's, and brute force."""

from typing import Any

import numpy as np
import pytest

from lmjax.tasks.metrics import answer_scores
from lmjax.tasks.thresholds import best_null_threshold, best_threshold, threshold_table

WORDS = ["bak", "dol gun", "fel nok", "gun"]


def find_best_thresh(
    preds: dict[int, str], scores: dict[int, float], na_probs: dict[int, float], has_ans: list[bool]
) -> tuple[float, float]:
    """evaluate-v2.0.py, word for word but for the percents."""
    num_no_ans = sum(1 for k in range(len(has_ans)) if not has_ans[k])
    cur_score: float = num_no_ans
    best_score = cur_score
    best_thresh = 0.0
    qid_list = sorted(na_probs, key=lambda k: na_probs[k])
    for qid in qid_list:
        if qid not in scores:
            continue
        cur_score += scores[qid] if has_ans[qid] else -1 if preds[qid] else 0
        if cur_score > best_score:
            best_score = cur_score
            best_thresh = na_probs[qid]
    return best_score / len(scores), best_thresh


def predictions(seed: int, count: int = 40, ties: bool = False) -> list[dict[str, Any]]:
    """At random: right answers, wrong ones, halves, empty ones, and questions without answer."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        gold = [] if rng.random() < 0.4 else [str(rng.choice(WORDS)), str(rng.choice(WORDS))]
        answer = "" if rng.random() < 0.1 else str(rng.choice(WORDS))
        difference = float(rng.integers(-3, 4)) if ties else float(rng.normal())
        found.append({"gold": gold, "best_answer": answer, "null_difference": difference})
    return found


def at(rows: list[dict[str, Any]], threshold: float, which: int) -> float:
    """What the rows score with a threshold."""
    said = [r["best_answer"] if r["null_difference"] <= threshold else "" for r in rows]
    pairs = zip(said, rows, strict=True)
    return float(np.mean([answer_scores(text, row["gold"])[which] for text, row in pairs]))


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("seed", range(8))
def test_the_best_is_the_official_scripts(seed: int, which: int) -> None:
    rows = predictions(seed)
    best, threshold, halfway = best_threshold(rows, which)
    official, official_threshold = find_best_thresh(
        {i: r["best_answer"] for i, r in enumerate(rows)},
        {i: answer_scores(r["best_answer"], r["gold"])[which] for i, r in enumerate(rows)},
        {i: r["null_difference"] for i, r in enumerate(rows)},
        [bool(r["gold"]) for r in rows],
    )
    assert best == pytest.approx(official, abs=1e-12)
    none = best == pytest.approx(np.mean([not r["gold"] for r in rows]))
    if not none:
        assert threshold == official_threshold
    assert at(rows, threshold, which) == at(rows, halfway, which) == pytest.approx(best)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_no_threshold_is_better(seed: int, ties: bool) -> None:
    rows = predictions(seed, ties=ties)
    differences = sorted(r["null_difference"] for r in rows)
    every = [differences[0] - 1, *differences]
    for which in (0, 1):
        best, threshold, halfway = best_threshold(rows, which)
        assert best == pytest.approx(max(at(rows, t, which) for t in every))
        assert at(rows, threshold, which) == at(rows, halfway, which) == pytest.approx(best)


def test_by_hand() -> None:
    # Two of five have no answer. Answered from below: +1, -1, +0.5, +1, of which all is best.
    gains, differences = [1.0, -1.0, 0.5, 1.0], [-2.0, -1.0, 0.5, 3.0]
    assert best_null_threshold(gains, differences, 2) == (3.5, 3.0, 4.0)
    assert best_null_threshold(gains[:3], differences[:3], 2) == (3.0, -2.0, -1.5)
    # Never to answer is below all differences, also where they are below 0.
    assert best_null_threshold([-1.0, -1.0], [-5.0, -4.0], 2) == (2.0, -6.0, -6.0)
    assert best_null_threshold([], [], 3) == (3.0, 0.0, 0.0)
    # Questions with one difference are answered together or not at all.
    assert best_null_threshold([1.0, -1.0], [0.0, 0.0], 1) == (1.0, -1.0, -1.0)


def test_the_table_has_what_is_used_beside_0_and_the_best() -> None:
    rows = [
        {"gold": ["bak"], "best_answer": "bak", "null_difference": 1.0},
        {"gold": [], "best_answer": "dol", "null_difference": 3.0},
        {"gold": ["nok"], "best_answer": "", "null_difference": None},
    ]
    used, zero, f1, exact = threshold_table(rows, 4.0)[4:8]
    assert used == "| as predicted | 4.000 | 0.3333 | 0.3333 |"
    assert zero == "| 0 | 0.000 | 0.3333 | 0.3333 |"
    assert f1 == "| best F1 here | 2.000 | 0.6667 | 0.6667 |"
    assert exact == "| best exact here | 2.000 | 0.6667 | 0.6667 |"
