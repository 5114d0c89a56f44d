"""When to give no answer: the threshold of the null score (SQuAD 2.0's evaluate-v2.0.py).

Predictions are those of `QuestionAnswering` with 'gold', 'best_answer' and 'null_difference', the
null score minus that of the best answer; None where no answer could be given.
"""

from collections.abc import Sequence

import numpy as np

from lmjax.data.rows import Row
from lmjax.tables import markdown_table
from lmjax.tasks.metrics import answer_scores


def best_threshold(predictions: Sequence[Row], which: int) -> tuple[float, float, float]:
    """`best_null_threshold` for exact match (0) or F1 (1), whose best is a mean from 0 to 1."""
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
    """The threshold of SQuAD 2.0's null score that gives the highest total.

    `find_best_thresh` of evaluate-v2.0.py, but that questions with equal differences are answered
    together, as any threshold does, and that where no answer is the best, the threshold lies below
    all differences, and not at 0.

    Args:
      gains: what the best answer of a question adds to the total if it is given: its score, less 1
        for a question without an answer.
      differences: the null score minus that of the best answer, which is given where this is not
        above the threshold.
      without: the total if no answer is given: how many questions have none.

    Returns:
      The total; the largest difference that is answered, which is the script's threshold; and
      halfway from there to the next difference, where rounding changes no answer.
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
    """Markdown: what the rows score with the threshold that is used, with 0, and at best."""
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
    """Exact match and F1 with another threshold."""
    difference = prediction["null_difference"]
    given = difference is not None and difference <= threshold
    return answer_scores(prediction["best_answer"] if given else "", prediction["gold"])
