"""Beam search against everything there is, and against transformers."""

import dataclasses
import itertools
import pathlib
from typing import Any

import jax
import numpy as np
import pytest

import lmjax
from tests.generation import models

PROMPTS = [[5, 4, 3], [2], [2, 3, 3, 4, 5, 4, 3], [2, 5]]


@pytest.mark.parametrize("length_penalty", [-0.5, 0.0, 1.0])
def test_beams_as_wide_as_all_texts_find_the_best_of_all(length_penalty: float) -> None:
    vocab, most = 3, 3
    model = models.gpt(vocab_size=vocab)  # 1 ends a document
    prompt = [2, 0]
    texts = [
        text
        for length in range(1, most + 1)
        for text in itertools.product(range(vocab), repeat=length)
        if 1 not in text[:-1] and (length == most or text[-1] == 1)
    ]
    whole = np.array([[*prompt, *text, *[0] * (most - len(text))] for text in texts])
    log_p = np.asarray(jax.nn.log_softmax(np.asarray(model(whole)), axis=-1))
    sums = [
        sum(log_p[i, len(prompt) - 1 + t, token] for t, token in enumerate(text))
        for i, text in enumerate(texts)
    ]
    scores = np.array([s / len(t) ** length_penalty for s, t in zip(sums, texts, strict=True)])
    best = np.argsort(-scores)[:4]
    found = lmjax.generate(
        model,
        [prompt],
        max_new_tokens=most,
        num_beams=vocab**most,
        num_return_sequences=4,
        length_penalty=length_penalty,
        early_stopping="never",
    )
    assert [tuple(map(int, beam.token_ids)) for beam in found] == [texts[i] for i in best]
    np.testing.assert_allclose([beam.score for beam in found], scores[best], atol=1e-4)
    for beam, i in zip(found, best, strict=True):
        np.testing.assert_allclose(beam.log_probs.sum(), sums[i], atol=1e-4)
        assert beam.ended == ("eos" if texts[i][-1] == 1 else "length")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A model whose documents end now and then, here and in transformers."""
    pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    place: pathlib.Path = tmp_path_factory.mktemp("beams") / "m"
    model = models.gpt(vocab_size=6, seed=1)
    lmjax.save_huggingface(model, place)
    return lmjax.load(place), transformers.GPT2LMHeadModel.from_pretrained(place).eval()


@pytest.mark.parametrize(
    ("beams", "length_penalty", "early_stopping", "more"),
    [
        (4, 1.0, False, {}),
        (4, 0.0, False, {}),
        (4, 2.0, "never", {}),
        (4, -1.0, True, {}),
        (4, 1.0, True, {"no_repeat_ngram_size": 3}),
        (2, 0.6, False, {}),
    ],
)
def test_beams_are_those_of_transformers(
    both: tuple[Any, Any],
    beams: int,
    length_penalty: float,
    early_stopping: Any,
    more: dict[str, Any],
) -> None:
    import torch

    ours, theirs = both
    settings: dict[str, Any] = {
        "max_new_tokens": 14,
        "num_beams": beams,
        "num_return_sequences": beams,
        "length_penalty": length_penalty,
        "early_stopping": early_stopping,
        **more,
    }
    found = lmjax.generate(ours, PROMPTS, **settings)
    # n-grams of padding count for them: one by one there.
    groups = [[prompt] for prompt in PROMPTS] if more else [PROMPTS]
    rows, scores = [], []
    for group in groups:
        longest = max(map(len, group))
        tokens = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in group])
        real = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in group])
        output = theirs.generate(
            tokens,
            attention_mask=real,
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
            **settings,
        )
        rows += [row[longest:].tolist() for row in output.sequences]
        scores += output.sequences_scores.tolist()
    lengths = set()
    for made, row, score in zip(found, rows, scores, strict=True):
        count = row.index(1) + 1 if 1 in row else len(row)
        assert made.token_ids.tolist() == row[:count]
        assert made.score == pytest.approx(score, rel=1e-5, abs=1e-4)
        lengths.add(count)
    # Where length is not rewarded and the beams are many, some texts end before the others.
    assert beams < 4 or length_penalty > 1 or len(lengths) > 1


def test_one_prompt_searches_as_it_does_among_others(both: tuple[Any, Any]) -> None:
    model = dataclasses.replace(both[0])
    settings: dict[str, Any] = {"max_new_tokens": 14, "num_beams": 4}
    together = lmjax.generate(model, PROMPTS, **settings)
    for prompt, made in zip(PROMPTS[:2], together, strict=False):
        (alone,) = lmjax.generate(model, [prompt], **settings)
        np.testing.assert_array_equal(alone.token_ids, made.token_ids)
