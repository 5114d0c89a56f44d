"""Null-score thresholds for unanswerable questions (SQuAD 2.0's evaluate-v2.0.py).

Predictions are those of `QuestionAnswering` with 'gold', 'best_answer' and 'null_difference': the
null score minus the score of the best answer, or None if there is no candidate answer.
"""

from collections.abc import Sequence

import numpy as np

from lmjax.data.rows import Row
from lmjax.tables import markdown_table
from lmjax.tasks.metrics import answer_scores


def best_threshold(predictions: Sequence[Row], which: int) -> tuple[float, float, float]:
    """Applies `best_null_threshold` to exact match (0) or F1 (1); the best score is in [0, 1]."""
    asked = [p for p in predictions if p["null_difference"] is not None]
    gains = [answer_scores(p["best_answer"], p["gold"])[which] - (not p["gold"]) for p in asked]
    without = sum(not p["gold"] for p in predictions)
    total, threshold, halfway = best_null_threshold(
        gains, [p["null_difference"] for p in asked], without
    )
    return total / len(predictions), threshold, halfway


def best_null_threshold(
    gains: Sequence[float], differences: Sequence[float], without: float
) -> tuple[float, float, float]:
    """Finds the threshold of SQuAD 2.0's null score with the highest total score.

    Like `find_best_thresh` of evaluate-v2.0.py, with two differences: questions with equal
    differences are answered together, as under any threshold; and if it is best to answer no
    question, the threshold lies below all differences instead of at 0.

    Args:
      gains: the change of the total if a question is answered: the score of its best answer,
        minus 1 for an unanswerable question.
      differences: the null score minus the score of the best answer. A question is answered if
        this is at most the threshold.
      without: the total if no question is answered: the number of unanswerable questions.

    Returns:
      The total; the largest answered difference, which is the script's threshold; and the middle
      between it and the next difference, a threshold that is robust to rounding.
    """
    order = np.argsort(differences, kind="stable")
    sorted_ = np.asarray(differences, float)[order]
    totals = np.cumsum([without, *np.asarray(gains, float)[order]])
    ends = np.append(True, np.append(sorted_[1:] != sorted_[:-1], True)[: len(sorted_)])
    best = int(np.argmax(np.where(ends, totals, -np.inf)))
    padded = [sorted_[0] - 2.0, *sorted_, sorted_[-1] + 2.0] if len(sorted_) else [0.0, 0.0]
    halfway = (padded[best] + padded[best + 1]) / 2
    return float(totals[best]), float(padded[best] if best else halfway), float(halfway)


def threshold_table(predictions: Sequence[Row], used: float) -> list[str]:
    """Returns a Markdown table of the scores at the used threshold, at 0, and at the best ones."""
    thresholds = {"as predicted": used, "0": 0.0}
    thresholds |= {
        f"best {name} here": best_threshold(predictions, i)[2]
        for name, i in (("F1", 1), ("exact", 0))
    }
    rows = []
    for name, threshold in thresholds.items():
        exact, f1 = np.mean([_scores(p, threshold) for p in predictions], axis=0)
        rows.append((name, f"{threshold:.3f}", f"{f1:.4f}", f"{exact:.4f}"))
    return ["## No answer", "", *markdown_table(("null threshold", "", "F1", "exact"), rows), ""]


def _scores(prediction: Row, threshold: float) -> tuple[float, float]:
    """Returns exact match and F1 of a prediction at another threshold."""
    difference = prediction["null_difference"]
    given = difference is not None and difference <= threshold
    return answer_scores(prediction["best_answer"] if given else "", prediction["gold"])
