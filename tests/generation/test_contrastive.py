"""Contrastive search against one that reads the whole text of every candidate anew."""

from typing import Any

import numpy as np
import pytest

import lmjax
from lmjax.convert.pretrained import Pretrained
from lmjax.errors import ConfigError
from tests.generation import models

PROMPTS = [[5, 9, 3], [7], [2, 8, 8, 4, 6, 11, 3]]
# One shape for all texts: it is padded on the right, which a causal model does not see.
LENGTH = 20


def reference(model: Pretrained, prompt: list[int], new: int, k: int, alpha: float) -> list[int]:
    def read(texts: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
        tokens = np.zeros((k, LENGTH), int)
        for row, text in enumerate(texts):
            tokens[row, : len(text)] = text
        hidden = np.asarray(model.hidden_states(tokens))[-1]
        at = np.arange(len(texts)), np.array([len(text) - 1 for text in texts])
        return np.asarray(model(tokens))[at], hidden[: len(texts)]

    text = list(prompt)
    for _ in range(new):
        logits = read([text])[0]
        p = np.exp(logits[0] - logits[0].max())
        p /= p.sum()
        candidates = np.argsort(-p, kind="stable")[:k]
        _, continued = read([[*text, int(v)] for v in candidates])
        scores = []
        for v, states in zip(candidates, continued, strict=True):
            mine, before = states[len(text)], states[: len(text)]
            cosine = before @ mine / np.linalg.norm(before, axis=1) / np.linalg.norm(mine)
            scores.append((1 - alpha) * p[v] - alpha * cosine.max())
        text.append(int(candidates[int(np.argmax(scores))]))
    return text[len(prompt) :]


@pytest.mark.parametrize(("k", "alpha"), [(4, 0.6), (2, 0.9)])
def test_every_token_is_the_one_that_whole_texts_say(k: int, alpha: float) -> None:
    model = models.gpt()
    settings: dict[str, Any] = {"max_new_tokens": 12, "ignore_eos": True}
    found = lmjax.generate(model, PROMPTS, top_k=k, penalty_alpha=alpha, **settings)
    greedy = lmjax.generate(model, PROMPTS, **settings)
    for prompt, made in zip(PROMPTS, found, strict=True):
        assert made.token_ids.tolist() == reference(model, prompt, 12, k, alpha)
    assert any(
        a.token_ids.tolist() != b.token_ids.tolist() for a, b in zip(found, greedy, strict=True)
    )


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(ConfigError, match="penalty_alpha: Xlnet"):
        lmjax.generate(models.xlnet(), PROMPTS, top_k=4, penalty_alpha=0.6)
    with pytest.raises(ConfigError, match="top_k: contrastive search needs at least 2"):
        lmjax.generate(models.xlnet(), PROMPTS, penalty_alpha=0.6)
