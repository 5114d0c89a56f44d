"""What words alone tell: the baseline of tasks with classes."""

import re
from collections.abc import Sequence


def words_of_code(text: str) -> list[str]:
    """Words in lower case, of prose or of code: `as_two` and `asTwo` are two each."""
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", text)]


def classes_by_words(
    train: Sequence[str], gold: Sequence[str], texts: Sequence[str]
) -> list[str] | None:
    """Classes of `texts` by logistic regression on TF-IDF of what stands between spaces.

    Args:
      train: texts to learn from, of the classes `gold`.

    Returns:
      None where scikit-learn is not installed.
    """
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
    except ImportError:
        return None
    words = make_pipeline(
        TfidfVectorizer(lowercase=True, token_pattern=r"\S+", sublinear_tf=True),
        LogisticRegression(C=10.0, max_iter=1000),
    )
    words.fit(train, gold)
    return [str(found) for found in words.predict(texts)]
