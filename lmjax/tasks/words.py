"""What words alone tell: the baseline of tasks with classes."""

from collections.abc import Sequence


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
