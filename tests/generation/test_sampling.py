"""Greedy search and sampling: what is chosen, what it depends on, and where it ends."""

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np
import pytest

import lmjax
from lmjax.convert.pretrained import Pretrained
from lmjax.errors import ConfigError
from lmjax.generation import sampling
from lmjax.generation.api import stream
from tests import tiny
from tests.generation import models

PROMPTS = [[5, 9, 3], [7], [2, 8, 8, 4, 6, 11, 3], [12, 5]]


@pytest.fixture(scope="module")
def gpt() -> Pretrained:
    return models.gpt()


@pytest.fixture(scope="module")
def writer() -> Pretrained:
    return models.gpt(text=True)


def log_probs(model: Pretrained, prompt: Any, new: Any) -> np.ndarray:
    """Of each new token, from the whole text read at once."""
    text = np.concatenate([prompt, new]).astype(int)[None]
    logits = jax.nn.log_softmax(np.asarray(model(text))[0, len(prompt) - 1 : -1])
    return np.asarray(logits)[np.arange(len(new)), new]


def test_greedy_takes_the_most_probable_and_says_how_probable(gpt: Pretrained) -> None:
    for prompt, made in zip(
        PROMPTS, lmjax.generate(gpt, PROMPTS, max_new_tokens=20, ignore_eos=True), strict=True
    ):
        assert len(made.token_ids) == 20 and made.ended == "length"
        logits = np.asarray(gpt(np.concatenate([prompt, made.token_ids])[None]))[0]
        np.testing.assert_array_equal(logits[len(prompt) - 1 : -1].argmax(-1), made.token_ids)
        expected = log_probs(gpt, prompt, made.token_ids)
        np.testing.assert_allclose(made.log_probs, expected, atol=1e-4)


@pytest.mark.parametrize("name", ["gpt", "xlnet"])
def test_samples_depend_on_the_prompt_and_the_seed_alone(name: str, gpt: Pretrained) -> None:
    model = gpt if name == "gpt" else models.xlnet()
    settings: dict[str, Any] = {"max_new_tokens": 12, "temperature": 1.3, "top_k": 20, "seed": 5}
    together = lmjax.generate(model, PROMPTS, **settings)
    shuffled = lmjax.generate(model, [PROMPTS[2], [9] * 20, PROMPTS[0]], **settings)
    np.testing.assert_array_equal(together[2].token_ids, shuffled[0].token_ids)
    np.testing.assert_array_equal(together[0].token_ids, shuffled[2].token_ids)
    other = lmjax.generate(model, PROMPTS, **{**settings, "seed": 6})
    assert any(list(a.token_ids) != list(b.token_ids) for a, b in zip(together, other, strict=True))
    twice = lmjax.generate(model, [PROMPTS[0], PROMPTS[0]], **settings)
    copies = lmjax.generate(model, [PROMPTS[0]], num_return_sequences=2, **settings)
    assert list(twice[0].token_ids) != list(twice[1].token_ids)
    for a, b in zip(twice, copies, strict=True):
        np.testing.assert_array_equal(a.token_ids, b.token_ids)


def test_samples_have_the_models_distribution() -> None:
    model = models.gpt(vocab_size=6)
    settings: dict[str, Any] = {"max_new_tokens": 2, "temperature": 1.0, "ignore_eos": True}
    settings |= {"num_return_sequences": 1024, "seed": 1}
    made = lmjax.generate(model, [[2, 3]], **settings)
    first = np.bincount([m.token_ids[0] for m in made], minlength=6) / len(made)
    p = np.asarray(jax.nn.softmax(np.asarray(model(np.array([[2, 3]])))[0, -1]))
    assert np.abs(first - p).max() < 4 * np.sqrt(0.25 / len(made))
    common = first.argmax()
    after = [m.token_ids[1] for m in made if m.token_ids[0] == common]
    p = np.asarray(jax.nn.softmax(np.asarray(model(np.array([[2, 3, common]])))[0, -1]))
    second = np.bincount(after, minlength=6) / len(after)
    assert np.abs(second - p).max() < 4 * np.sqrt(0.25 / len(after))


def test_nothing_compiles_anew_within_a_bucket(gpt: Pretrained) -> None:
    def sizes() -> tuple[int, int]:
        return sampling.begin._cache_size(), sampling.advance._cache_size()

    settings: dict[str, Any] = {"top_p": 0.9, "ignore_eos": True}
    lmjax.generate(gpt, PROMPTS, max_new_tokens=9, temperature=0.7, **settings)
    before = sizes()
    lmjax.generate(gpt, [[3] * 16, *PROMPTS[:2]], max_new_tokens=16, temperature=0.9, **settings)
    lmjax.generate(gpt, [[4], [2], [3], [3]], max_new_tokens=3, temperature=2.0, **settings)
    assert sizes() == before
    lmjax.generate(gpt, [[3] * 17, *PROMPTS[:2]], max_new_tokens=9, temperature=0.7, **settings)
    assert sizes() == (before[0] + 1, before[1] + 1)


@pytest.mark.parametrize("no_repeat_ngram_size", [0, 2])
def test_greedy_is_that_of_transformers(
    gpt: Pretrained, tmp_path: pathlib.Path, no_repeat_ngram_size: int
) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    lmjax.save_huggingface(gpt, tmp_path / "m")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "m").eval()
    ours = lmjax.load(tmp_path / "m")
    settings: dict[str, Any] = {"repetition_penalty": 1.2} if no_repeat_ngram_size else {}
    settings |= {"no_repeat_ngram_size": no_repeat_ngram_size, "max_new_tokens": 24}
    for prompt, made in zip(PROMPTS, lmjax.generate(ours, PROMPTS, **settings), strict=True):
        # One by one: their padding counts as text for the penalties.
        given = torch.tensor([prompt])
        found = theirs.generate(
            given, attention_mask=torch.ones_like(given), do_sample=False, **settings
        )
        np.testing.assert_array_equal(found[0, len(prompt) :].numpy(), made.token_ids)


def test_xlnet_is_one_evaluation_of_the_whole_text() -> None:
    model = models.xlnet()

    @jax.jit
    def evaluate(params: Any, tokens: Any, visible: Any, mapping: Any) -> Any:
        arguments = tiny.text_inputs(tokens, visible), None, mapping
        output, _ = model.network.apply({"params": params}, *arguments)
        return model.network.apply({"params": params}, output, method="decode")

    made = lmjax.generate(model, PROMPTS[:3], max_new_tokens=8, temperature=1.0, ignore_eos=True)
    for prompt, text in zip(PROMPTS, made, strict=False):
        tokens = np.concatenate([prompt, text.token_ids]).astype(int)
        n, length = len(prompt), len(tokens)
        place = np.arange(length)
        # Who may be seen, written out: the prompt by all, then what stands before.
        visible = (place[None] < n) | (place[None] < place[:, None])
        mapping = np.arange(n, length)[None]
        logits = evaluate(model.params, tokens[None], visible[None], mapping)
        log_p = np.asarray(jax.nn.log_softmax(logits[0]))
        np.testing.assert_allclose(
            text.log_probs, log_p[np.arange(length - n), text.token_ids], atol=1e-4
        )


def test_a_document_ends_at_its_end(gpt: Pretrained) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 30, "temperature": 2.0}
    free = lmjax.generate(gpt, PROMPTS, ignore_eos=True, **settings)
    end = int(free[0].token_ids[5])
    gpt = dataclasses.replace(gpt, token_ids={"eos_token_id": end})
    made = lmjax.generate(gpt, PROMPTS, **settings)
    assert made[0].ended == "eos"
    for whole, text in zip(free, made, strict=True):
        ids = list(whole.token_ids)
        wanted = ids[: ids.index(end) + 1] if end in ids else ids
        assert list(text.token_ids) == wanted and len(text.log_probs) == len(wanted)
        assert text.ended == ("eos" if end in ids else "length")


def test_a_stop_string_ends_the_text_before_it_whatever_the_chunks(writer: Pretrained) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 40, "temperature": 1.5, "seed": 3}
    (free,) = lmjax.generate(writer, "It is", ignore_eos=True, **settings)
    where = next(i for i in range(9, 30) if free.text[i : i + 2].isprintable())
    stop = free.text[where : where + 2]
    where = free.text.index(stop)
    (made,) = lmjax.generate(writer, "It is", stop=[stop, "never"], ignore_eos=True, **settings)
    assert made.ended == "stop" and made.text == free.text[:where]
    assert len(made.token_ids) < len(free.token_ids)
    np.testing.assert_array_equal(made.token_ids, free.token_ids[: len(made.token_ids)])
    pieces = list(stream(writer, "It is", stop=[stop], ignore_eos=True, **settings))
    assert "".join(pieces) == made.text
    pieces = list(stream(writer, "It is", ignore_eos=True, **settings))
    assert "".join(pieces) == free.text and len(pieces) > 3


@pytest.mark.parametrize(
    ("prompts", "settings", "message"),
    [
        ([[3]], {"max_new_tokens": 64}, "max_new_tokens: 64 after a prompt of 1 tokens"),
        ([[3]], {"top_q": 0.5}, r"generate\.top_q: unknown field.*did you mean 'top_p'"),
        ([[3]], {"top_p": 0.5}, "top_p: applies only to sampling"),
        ([[3]], {"temperature": -1.0}, "temperature: must not be negative"),
        ([[3]], {"temperature": float("nan")}, "temperature: must be a finite"),
        ([[3]], {"max_new_tokens": 0}, "max_new_tokens: must be at least 1"),
        ([[3]], {"num_return_sequences": 2}, "greedy search gives identical texts"),
        ([[3]], {"stop": ""}, "stop: expected a tuple"),
        ([[3]], {"stop": [""]}, "an empty string ends"),
        ([[30]], {}, "id 30 is outside of the model's token table of 30 rows"),
        ([[]], {}, "number 0 is empty"),
        ([], {}, "prompts: empty"),
        ("text", {}, "the model has no tokenizer"),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    gpt: Pretrained, prompts: Any, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        lmjax.generate(gpt, prompts, **settings)
