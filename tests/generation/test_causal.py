"""Greedy decoding and sampling: transformers, seeds, stop strings, and no needless compile."""

import dataclasses
import pathlib
from typing import Any

import numpy as np
import pytest
from lmjax.generation.generate import stream

import lmjax
from lmjax.convert.pretrained import Pretrained
from lmjax.data.tokenizer_training import train_tokenizer
from lmjax.data.tokenizers import TokenizerConfig
from lmjax.errors import ConfigError
from lmjax.generation import causal
from tests.generation.models import EOS, PAD, gpt, left_padded, prompts, theirs

STEPS = 12


@pytest.fixture(scope="module")
def torch_model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("transformers", reason="transformers is not installed")
    place: pathlib.Path = tmp_path_factory.mktemp("gpt2")
    return theirs(gpt(), place)


@pytest.mark.parametrize(
    "settings", [{}, {"no_repeat_ngram_size": 2}], ids=["greedy", "no_repeat_ngram"]
)
def test_greedy_texts_are_those_of_transformers(torch_model: Any, settings: Any) -> None:
    import torch

    given = prompts()
    tokens, real = left_padded(given)
    found = torch_model.generate(
        torch.tensor(tokens),
        attention_mask=torch.tensor(real),
        max_new_tokens=STEPS,
        do_sample=False,
        eos_token_id=EOS,
        pad_token_id=PAD,
        **settings,
    )[:, tokens.shape[1] :].numpy()
    ours = lmjax.generate(gpt(), given, max_new_tokens=STEPS, **settings)
    for row, text in zip(found, ours, strict=True):
        np.testing.assert_array_equal(row[: len(text.tokens)], text.tokens)
        assert (row[len(text.tokens) :] == PAD).all()
    assert {text.ended for text in ours} == {"eos", "length"}


def test_repetition_penalty_is_that_of_transformers(torch_model: Any) -> None:
    # Of one prompt: their penalty counts padding as text, ours does not.
    import torch

    given = prompts()[2]
    found = torch_model.generate(
        torch.tensor([given]),
        max_new_tokens=STEPS,
        do_sample=False,
        eos_token_id=EOS,
        pad_token_id=PAD,
        repetition_penalty=1.5,
    )[0, len(given) :].numpy()
    (ours,) = lmjax.generate(gpt(), [given], max_new_tokens=STEPS, repetition_penalty=1.5)
    np.testing.assert_array_equal(found, ours.tokens)


def test_log_probs_are_the_models_own() -> None:
    model, given = gpt(), prompts()
    for text in lmjax.generate(model, given, max_new_tokens=STEPS, temperature=1.5, top_k=5):
        whole = np.concatenate([np.asarray(text.prompt), text.tokens])
        logits = np.asarray(model(whole[None]), np.float64)[0, len(text.prompt) - 1 : -1]
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        expected = log_p[np.arange(len(text.tokens)), text.tokens]
        np.testing.assert_allclose(text.log_probs, expected, atol=1e-4)
        assert text.score == pytest.approx(expected.sum(), abs=1e-3)


def test_draws_depend_on_the_seed_and_the_prompt_alone() -> None:
    given = prompts()
    settings: dict[str, Any] = {"max_new_tokens": STEPS, "temperature": 1.0}
    together = lmjax.generate(gpt(), given, **settings)
    reverse = lmjax.generate(gpt(), given[::-1], **settings)[::-1]
    alone = [lmjax.generate(gpt(), [prompt], **settings)[0] for prompt in given]
    in_steps = list(stream(gpt(), given, chunk=1, **settings))[-1]
    for texts in (reverse, alone, in_steps):
        for a, b in zip(together, texts, strict=True):
            np.testing.assert_array_equal(a.tokens, b.tokens)
    other = lmjax.generate(gpt(), given, seed=1, **settings)
    assert any(a.tokens.tolist() != b.tokens.tolist() for a, b in zip(together, other, strict=True))
    copies = lmjax.generate(gpt(), given[:1], num_return_sequences=4, **settings)
    assert len({tuple(text.tokens) for text in copies}) > 1
    np.testing.assert_array_equal(copies[0].tokens, together[0].tokens)


def test_draws_have_the_models_frequencies() -> None:
    from scipy import stats

    model, prompt = gpt(vocab_size=6, layers=1, eos=1), [2, 3, 4]
    logits = np.asarray(model(np.array([prompt])))[0, -1] / 2.0
    expected = np.exp(logits) / np.exp(logits).sum()
    texts = lmjax.generate(
        model, [prompt], max_new_tokens=1, temperature=2.0, num_return_sequences=2000
    )
    counts = np.bincount([text.tokens[0] for text in texts], minlength=6)
    assert stats.chisquare(counts, 2000 * expected).pvalue > 1e-3


def test_nothing_is_compiled_for_another_prompt_of_the_bucket() -> None:
    settings: dict[str, Any] = {"temperature": 0.9, "top_k": 7}
    lmjax.generate(gpt(), prompts(3), max_new_tokens=12, **settings)
    sizes = causal.begin._cache_size(), causal.go_on._cache_size()
    lmjax.generate(gpt(), prompts(4, seed=5), max_new_tokens=16, seed=3, **settings)
    lmjax.generate(gpt(), [[7] * 16] * 3, max_new_tokens=1, **settings)
    list(stream(gpt(), prompts(3), max_new_tokens=5, chunk=2, **settings))
    assert (causal.begin._cache_size(), causal.go_on._cache_size()) == sizes
    lmjax.generate(gpt(), [[7] * 17] * 3, max_new_tokens=1, **settings)
    assert causal.go_on._cache_size() == sizes[1] + 1


@pytest.fixture(scope="module")
def with_text() -> Pretrained:
    words = [
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
    ]
    texts = [" ".join(np.roll(words, i)) for i in range(12)]
    tokenizer = train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=300), texts)
    model = gpt(vocab_size=tokenizer.size, eos=tokenizer.roles["eod"])
    return dataclasses.replace(model, tokenizer=tokenizer)


def test_a_text_ends_before_the_stop_string(with_text: Pretrained) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 24, "temperature": 1.0, "seed": 2}
    (free,) = lmjax.generate(with_text, "one two", **settings)
    assert free.ended == "length" and len(free.text) > 12
    stop = free.text[7:9]
    (text,) = lmjax.generate(with_text, "one two", stop=("never there", stop), **settings)
    assert text.ended == "stop"
    assert text.text == free.text[: free.text.index(stop)]
    count = len(text.tokens)
    np.testing.assert_array_equal(text.tokens, free.tokens[:count])
    steps = list(stream(with_text, ["one two"], chunk=2, stop=(stop,), **settings))
    assert steps[-1][0].text == text.text
    assert len(steps) == -(-count // 2)  # and nothing is read beyond it


def test_an_empty_prompt_begins_with_the_first_token(with_text: Pretrained) -> None:
    first = with_text.token_ids["bos_token_id"]
    (empty,) = lmjax.generate(with_text, "", max_new_tokens=5)
    (given,) = lmjax.generate(with_text, [[first]], max_new_tokens=5)
    (added,) = lmjax.generate(with_text, [[]], max_new_tokens=5, add_bos=True)
    np.testing.assert_array_equal(empty.tokens, given.tokens)
    np.testing.assert_array_equal(empty.tokens, added.tokens)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 63}, "max_new_tokens.*at most 61"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"typical_p": 1.5}, "typical_p"),
        ({"min_p": 2.0}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"top_kk": 3}, "top_kk.*did you mean 'top_k'"),
        ({"num_return_sequences": 2}, "num_return_sequences"),
        ({"stop": "a"}, "stop"),
        ({"stop": ("a",)}, "stop.*tokenizer"),
        ({"regex": "a", "choices": ("b",)}, "regex"),
    ],
)
def test_settings_that_cannot_work_are_named(settings: Any, field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        lmjax.generate(gpt(), [[2, 3, 4]], **settings)


def test_prompts_that_cannot_work_are_named() -> None:
    with pytest.raises(ConfigError, match="tokenizer"):
        lmjax.generate(gpt(), "text")
    with pytest.raises(ConfigError, match=r"prompts\[1\]"):
        lmjax.generate(gpt(), [[2], [99]])
    with pytest.raises(ConfigError, match="GptEncoder"):
        lmjax.generate(dataclasses.replace(gpt(), network=_encoder()), [[2]])


def _encoder() -> Any:
    from lmjax.models.gpt import GptEncoder

    return GptEncoder(gpt().network.config)  # type: ignore[attr-defined]
