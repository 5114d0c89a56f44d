"""Metrics of predictions against true labels."""

import collections
import re
import string
import warnings
from collections.abc import Sequence

import numpy as np

from lmjax.errors import require_finite
from lmjax.extras import require


def confusion(gold: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    """Returns [classes, classes] counts; rows are true classes, columns predictions."""
    index = {label: i for i, label in enumerate(labels)}
    table = np.zeros((len(labels), len(labels)), int)
    np.add.at(table, ([index[g] for g in gold], [index[p] for p in predicted]), 1)
    return table


def class_scores(table: np.ndarray) -> dict[str, float]:
    """Computes accuracy, macro-F1 over the occurring classes, and Matthews correlation.

    Args:
      table: the result of `confusion`. Classes that neither occur nor are predicted are ignored.

    Returns:
      'accuracy', 'macro_f1', 'matthews' (Gorodkin 2004, for any number of classes; 0 if all
      predictions or all labels are the same class).
    """
    total, hits = table.sum(), np.diag(table)
    truth, guess = table.sum(1), table.sum(0)
    present = truth + guess > 0
    f1 = 2 * hits[present] / (truth + guess)[present]
    covariance = hits.sum() * total - truth @ guess
    spread = np.sqrt(float(total**2 - guess @ guess)) * np.sqrt(float(total**2 - truth @ truth))
    return {
        "accuracy": float(hits.sum() / total),
        "macro_f1": float(f1.mean()),
        "matthews": float(covariance / spread) if spread else 0.0,
    }


def correlations(gold: Sequence[float], predicted: Sequence[float]) -> dict[str, float]:
    """Computes Pearson and Spearman correlations and their mean, GLUE's score for STS-B.

    They are 0 if either side is constant.
    """
    from scipy import stats

    require_finite([*gold, *predicted], "numbers to be correlated")
    if min(np.ptp(gold), np.ptp(predicted)) == 0:
        return dict.fromkeys(("correlation", "pearson", "spearman"), 0.0)
    pearson = float(stats.pearsonr(gold, predicted).statistic)
    spearman = float(stats.spearmanr(gold, predicted).statistic)
    return {"correlation": (pearson + spearman) / 2, "pearson": pearson, "spearman": spearman}


def relation_scores(
    gold: Sequence[str], predicted: Sequence[str], other: str = "Other"
) -> dict[str, float]:
    """SemEval-2010 task 8's official score, '(9+1)-way with directionality taken into account'.

    The two directions of a relation, 'R(e1,e2)' and 'R(e2,e1)', are scored as one relation;
    predictions with the wrong direction are wrong. `other` means no relation: it has no score of
    its own, but confusing it with a relation reduces the relation's precision or recall.

    Returns:
      'macro_f1', 'precision' and 'recall': means over the relations in `gold`; 'accuracy' over
      all rows, including those with `other`.
    """
    pairs = list(zip(gold, predicted, strict=True))
    found = []
    for relation in sorted({undirected(g) for g in gold} - {other}):
        right = sum(g == p and undirected(g) == relation for g, p in pairs)
        guessed = sum(undirected(p) == relation for _, p in pairs)
        precision = right / guessed if guessed else 0.0
        recall = right / sum(undirected(g) == relation for g, _ in pairs)
        f1 = 2 * precision * recall / (precision + recall) if right else 0.0
        found.append((f1, precision, recall))
    means = np.mean(found, axis=0) if found else np.zeros(3)
    accuracy = float(np.mean([g == p for g, p in pairs]))
    names = ("macro_f1", "precision", "recall")
    return {**{n: float(x) for n, x in zip(names, means, strict=True)}, "accuracy": accuracy}


def undirected(label: str) -> str:
    """Removes '(e1,e2)' or '(e2,e1)' from the name of a relation."""
    return re.sub(r"\(e[12],e[12]\)$", "", label)


def check_seqeval() -> None:
    """Raises ConfigError if seqeval is not installed."""
    require("seqeval", "eval", "score: span F1")


def check_sacrebleu() -> None:
    """Raises ConfigError if sacrebleu is not installed."""
    require("sacrebleu", "eval", "task: the score of generated text")


def text_scores(gold: Sequence[str], predicted: Sequence[str]) -> dict[str, float]:
    """Computes chrF (Popović 2015) and BLEU (Papineni et al. 2002) by sacrebleu.

    Both are in [0, 100] and ignore case. chrF ignores spaces, so it does not depend on how a
    tokenizer places them.
    """
    check_sacrebleu()
    from sacrebleu.metrics import BLEU, CHRF

    references = [list(gold)]
    return {
        "chrf": CHRF(lowercase=True).corpus_score(list(predicted), references).score,
        "bleu": BLEU(lowercase=True).corpus_score(list(predicted), references).score,
    }


def span_scores(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Computes F1, precision and recall of whole spans in BIO tags (conlleval's, by seqeval)."""
    check_seqeval()
    from seqeval import metrics

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about span types that are never predicted
        return {
            "span_f1": float(metrics.f1_score(gold, predicted)),
            "precision": float(metrics.precision_score(gold, predicted)),
            "recall": float(metrics.recall_score(gold, predicted)),
        }


_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise_answer(text: str) -> str:
    """Normalizes as SQuAD's evaluate-v1.1.py: lower case, no punctuation or articles."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def answer_scores(prediction: str, answers: Sequence[str]) -> tuple[float, float]:
    """Computes exact match and word F1, each the maximum over the true answers.

    If `answers` is empty, only the prediction '' is correct (SQuAD 2.0's evaluate-v2.0.py).
    """
    truths = [a for a in answers if normalise_answer(a)] or [""]
    exact = max(float(normalise_answer(prediction) == normalise_answer(a)) for a in truths)
    return exact, max(_word_f1(prediction, a) for a in truths)


def _word_f1(prediction: str, answer: str) -> float:
    guess, truth = normalise_answer(prediction).split(), normalise_answer(answer).split()
    if not guess or not truth:
        return float(guess == truth)
    common = sum((collections.Counter(guess) & collections.Counter(truth)).values())
    if not common:
        return 0.0
    precision, recall = common / len(guess), common / len(truth)
    return 2 * precision * recall / (precision + recall)
