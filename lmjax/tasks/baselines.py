"""Bag-of-words baselines: logistic regression on TF-IDF for tasks with classes."""

import re
from collections.abc import Sequence

from lmjax.extras import installed


def words_of_code(text: str) -> list[str]:
    """Returns the lowercase words of prose or code: `as_two` and `asTwo` have two words each."""
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", text)]


def classes_by_words(
    train: Sequence[str], gold: Sequence[str], texts: Sequence[str]
) -> list[str] | None:
    """Classifies `texts` by logistic regression on TF-IDF of space-separated words.

    Args:
      train: training texts.
      gold: classes of the training texts.
      texts: the texts to classify.

    Returns:
      The classes, or None if scikit-learn is not installed.
    """
    if not installed("sklearn"):
        return None
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    words = make_pipeline(
        TfidfVectorizer(lowercase=True, token_pattern=r"\S+", sublinear_tf=True),
        LogisticRegression(C=10.0, max_iter=1000),
    )
    words.fit(train, gold)
    return [str(found) for found in words.predict(texts)]
