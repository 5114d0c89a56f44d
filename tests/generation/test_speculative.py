"""A draft changes how fast the text comes, never which text it is."""

from typing import Any

import jax
import numpy as np
import pytest
import scipy.stats

import lmjax
from lmjax.convert.pretrained import Pretrained
from lmjax.errors import ConfigError
from lmjax.generation.logits import Filters
from lmjax.generation.settings import GenerationConfig
from tests.generation import models

VOCABULARY = 5
PROMPTS = [[4, 3], [2, 2, 4, 0, 3]]


@pytest.fixture(scope="module")
def pair() -> tuple[Pretrained, Pretrained]:
    return models.gpt(VOCABULARY), models.gpt(VOCABULARY, seed=1, layers=1)


def test_greedy_text_is_that_without_a_draft(pair: tuple[Pretrained, Pretrained]) -> None:
    model, draft = pair
    settings: dict[str, Any] = {"max_new_tokens": 30, "ignore_eos": True}
    expected = lmjax.generate(model, PROMPTS, **settings)
    found = lmjax.generate(model, PROMPTS, draft=draft, draft_tokens=3, **settings)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a.token_ids, b.token_ids)
        np.testing.assert_allclose(a.log_probs, b.log_probs, atol=1e-4)
        assert a.accepted is not None and 0 <= a.accepted < 1
    itself = lmjax.generate(model, PROMPTS, draft=model, draft_tokens=3, **settings)
    assert [text.accepted for text in itself] == [1.0, 1.0]
    ended = lmjax.generate(model, PROMPTS, draft=draft, draft_tokens=3, max_new_tokens=30)
    for a, b in zip(ended, lmjax.generate(model, PROMPTS, max_new_tokens=30), strict=True):
        np.testing.assert_array_equal(a.token_ids, b.token_ids)
        assert a.ended == b.ended


@pytest.mark.parametrize("shape", [{}, {"temperature": 1.5, "top_p": 0.8}], ids=["p", "top_p"])
def test_samples_have_the_models_distribution(
    pair: tuple[Pretrained, Pretrained], shape: dict[str, float]
) -> None:
    model, draft = pair
    settings: dict[str, Any] = {"temperature": 2.0, **shape}
    made = lmjax.generate(
        *(model, [PROMPTS[0]]),
        draft=draft,
        draft_tokens=2,
        max_new_tokens=3,
        num_return_sequences=700,
        ignore_eos=True,
        **settings,
    )
    assert 0.05 < np.mean([text.accepted for text in made]) < 0.95  # both ways are gone
    # Of all texts of three tokens, the probability under the model alone.
    texts = np.indices((VOCABULARY,) * 3).reshape(3, -1).T
    whole = np.concatenate([np.tile(PROMPTS[0], (len(texts), 1)), texts], axis=1)
    logits = np.asarray(model(whole))[:, 1:4].reshape(-1, VOCABULARY)
    shaped = Filters.of(GenerationConfig(**settings)).shape(jax.numpy.asarray(logits))
    p = np.asarray(jax.nn.softmax(shaped, axis=-1)).reshape(-1, 3, VOCABULARY)
    expected = np.prod(np.take_along_axis(p, texts[..., None], axis=-1)[..., 0], axis=1)
    places = [VOCABULARY**2 * a + VOCABULARY * b + c for a, b, c in (m.token_ids for m in made)]
    counts = np.bincount(places, minlength=len(texts))
    assert counts[expected == 0].sum() == 0
    expected = expected.astype(np.float64) * len(made)
    rare = expected < 5
    observed = np.append(counts[~rare], counts[rare].sum())
    wanted = np.append(expected[~rare], expected[rare].sum())
    kept = wanted > 0
    wanted = wanted[kept] * observed.sum() / wanted.sum()
    assert len(wanted) > 5
    assert scipy.stats.chisquare(observed[kept], wanted).pvalue > 1e-3


def test_what_does_not_fit_is_refused(pair: tuple[Pretrained, Pretrained]) -> None:
    model, draft = pair
    with pytest.raises(ConfigError, match="its tokenizer differs from the model's"):
        lmjax.generate(model, PROMPTS, draft=models.gpt(6))
    with pytest.raises(ConfigError, match="draft: Xlnet has no key-value cache"):
        lmjax.generate(model, PROMPTS, draft=models.xlnet(VOCABULARY))
    with pytest.raises(ConfigError, match="repetition_penalty: not supported with a draft"):
        lmjax.generate(model, PROMPTS, draft=draft, repetition_penalty=1.1)
