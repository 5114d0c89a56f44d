"""Style transfer by deletion and infilling, and continuations reranked by a classifier.

Li et al. 2018, "Delete, Retrieve, Generate": the markers of a style are words that are frequent in
it and rare elsewhere. They are deleted, and the rest is completed in the other style. Here a masked
model fills the gaps, and a classifier of styles chooses among its candidates.
"""

import collections
import math
from collections.abc import Mapping, Sequence

import numpy as np

from lmjax.convert.pretrained import Pretrained
from lmjax.data.rows import Row
from lmjax.errors import ConfigError
from lmjax.extras import require
from lmjax.generation.api import generate
from lmjax.tasks.baselines import classes_by_words
from lmjax.tasks.metrics import text_scores
from lmjax.tasks.opened import Opened

_LONGEST = 4  # words in a marker
_GAP = (1, 2)  # numbers of masks to try in each gap
_TOP_K = 20  # candidate tokens at a mask


def markers(
    rows: Sequence[Row], style: str, smoothing: float = 1.0, threshold: float = 15.0
) -> dict[tuple[str, ...], float]:
    """The n-grams of 1 to 4 words that mark a style, with their salience (eq. 1).

    s(u, v) = (count(u, D_v) + smoothing) / (sum over other styles of count(u, D_v') + smoothing)

    Args:
      rows: have 'text', and the style as 'gold'.
      threshold: the lowest salience; the paper uses 15 for sentiment (§4.1).
    """
    inside: collections.Counter[tuple[str, ...]] = collections.Counter()
    outside: collections.Counter[tuple[str, ...]] = collections.Counter()
    for row in rows:
        (inside if row["gold"] == style else outside).update(_ngrams(row["text"].lower().split()))
    saliences = {u: (n + smoothing) / (outside[u] + smoothing) for u, n in inside.items()}
    return {u: s for u, s in saliences.items() if s >= threshold}


def _ngrams(words: Sequence[str]) -> list[tuple[str, ...]]:
    return [
        tuple(words[i : i + n]) for n in range(1, _LONGEST + 1) for i in range(len(words) - n + 1)
    ]


def without_markers(
    words: Sequence[str], known: Mapping[tuple[str, ...], float]
) -> list[list[str]]:
    """The pieces of a text that remain without its markers, with a gap between any two.

    The most salient marker is deleted first; of equally salient ones the longest, then the
    leftmost. Adjacent gaps merge.
    """
    lower = [word.lower() for word in words]
    found = [
        (known[u], n, -i)
        for n in range(1, _LONGEST + 1)
        for i in range(len(lower) - n + 1)
        if (u := tuple(lower[i : i + n])) in known
    ]
    deleted = [False] * len(words)
    for _, n, negative in sorted(found, reverse=True):
        if not any(deleted[-negative : -negative + n]):
            deleted[-negative : -negative + n] = [True] * n
    pieces: list[list[str]] = [[]]
    for i, word in enumerate(words):
        if not deleted[i]:
            pieces[-1].append(word)
        elif i == 0 or not deleted[i - 1]:
            pieces.append([])
    return pieces


def restyle(
    model: Pretrained,
    judge: Opened,
    texts: Sequence[str],
    known: Mapping[tuple[str, ...], float],
    style: str,
    candidates: int = 8,
    seed: int = 0,
) -> list[str]:
    """The texts in another style. Texts without markers do not change.

    Args:
      model: a masked language model.
      judge: a classifier of styles.
      known: markers of the style of the texts.
      style: the target style.
      candidates: number of fillings per text and size of gap. The one with the highest
        log p(style) plus mean log p of the filled tokens is returned.
    """
    tokenizer = model.tokenizer
    assert tokenizer is not None
    prompts, owner = [], []
    for i, text in enumerate(texts):
        pieces = without_markers(text.split(), known)
        spaced = (" ".join(["", *piece] if j else piece) for j, piece in enumerate(pieces))
        first, *others = tokenizer.encode_batch(list(spaced))
        for size in _GAP if others else ():
            gap = [tokenizer.roles["mask"]] * size
            prompts.append(
                np.concatenate([first, *(part for ids in others for part in (gap, ids))])
            )
            owner.append(i)
    if not prompts:
        return list(texts)
    made = generate(
        model,
        prompts,
        num_return_sequences=candidates,
        temperature=1.0,
        top_k=_TOP_K,
        seed=seed,
    )
    owners = np.repeat(owner, candidates)
    styled = _log_probabilities(judge, [g.text for g in made], style)
    best = {i: (-math.inf, text) for i, text in enumerate(texts)}
    for i, log_p, one in zip(owners, styled, made, strict=True):
        score = log_p + float(np.mean(one.log_probs))
        if score > best[int(i)][0]:
            best[int(i)] = score, one.text
    return [text for _, text in best.values()]


def continue_in_style(
    model: Pretrained,
    judge: Opened,
    prompts: Sequence[str],
    style: str,
    candidates: int = 8,
    max_new_tokens: int = 32,
    seed: int = 0,
) -> tuple[list[str], list[str]]:
    """Continuations of prompts, chosen by style.

    Args:
      model: a causal language model.
      judge: a classifier of styles.

    Returns:
      For each prompt the first sample, and the one of `candidates` samples with the highest
      p(style). Both begin with the prompt.
    """
    made = generate(
        model,
        prompts,
        num_return_sequences=candidates,
        temperature=1.0,
        top_p=0.9,
        max_new_tokens=max_new_tokens,
        seed=seed,
    )
    texts = [f"{prompts[i // candidates]}{one.text}" for i, one in enumerate(made)]
    styled = np.array(_log_probabilities(judge, texts, style)).reshape(len(prompts), candidates)
    starts = np.arange(len(prompts)) * candidates
    return [texts[i] for i in starts], [texts[i] for i in starts + styled.argmax(1)]


def style_scores(
    train: Sequence[Row], before: Sequence[str], after: Sequence[str], style: str
) -> dict[str, float]:
    """How many texts are of a style, by a classifier that took no part in choosing them.

    Args:
      train: rows with 'text' and 'gold'; logistic regression on their words is the classifier.

    Returns:
      The share of texts of the style before and after, and chrF (Popović 2015) of the texts after
      against those before, which is 100 if nothing changed.

    Raises:
      ConfigError: scikit-learn or sacrebleu is not installed.
    """
    require("sklearn", "eval", "the score of a style")
    gold = [row["gold"] for row in train]
    found = classes_by_words([r["text"].lower() for r in train], gold, [*before, *after])
    assert found is not None
    shares = np.array([one == style for one in found]).reshape(2, -1).mean(1)
    chrf = text_scores(before, after)["chrf"]
    return {"of the style before": float(shares[0]), "after": float(shares[1]), "chrF": chrf}


def alike(text: str, other: str) -> bool:
    """Whether texts are equal up to spaces and case, which tokenizers do not keep."""
    return "".join(text.split()).lower() == "".join(other.split()).lower()


def _log_probabilities(judge: Opened, texts: Sequence[str], style: str) -> list[float]:
    """log p(style) of each text. An empty text is read as '-'."""
    rows = [{"text": text or "-", "gold": style} for text in texts]
    return [math.log(max(p["gold_probability"], 1e-12)) for p in judge.predict(rows)]


def check_style(judge: Opened, style: str, flag: str) -> None:
    """Raises ConfigError if the classifier has no such class."""
    if style not in judge.labels:
        raise ConfigError(f"{flag}: '{style}' is none of {', '.join(judge.labels)}")
