"""Prefix LM: the prefix of each document, who sees whom, the loss, and how prompts are read."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

import lmjax
from lmjax.errors import ConfigError
from lmjax.objectives.base import Batch, apply
from lmjax.objectives.prefix import PrefixGpt, PrefixLM
from lmjax.training.plan import make_objective
from lmjax.training.step import corrupt_batch
from tests import tiny
from tests.generation import models

CAUSAL = tiny.objective("gpt")
PREFIX = PrefixLM(vocabulary=tiny.VOCABULARY, model=CAUSAL.model, z_loss=1e-4)
SIZES = (6, 1, 7)  # of the documents of a row, which two tokens of padding follow


def text(rows: int = 4) -> dict[str, np.ndarray]:
    batch = tiny.batch("gpt", 1, rows=rows)
    batch["segment_ids"][:] = np.repeat([1, 2, 3, 0], [*SIZES, 2])
    batch["positions"][:] = np.concatenate([*map(np.arange, SIZES), [0, 0]])
    return batch


def corrupted(made: PrefixLM, seed: int = 0, rows: int = 4) -> Batch:
    found: Batch = jax.jit(lambda b: corrupt_batch(made, jax.random.key(seed), b)[0])(text(rows))
    return found


@pytest.fixture(scope="module")
def params() -> Any:
    found = jax.jit(PREFIX.init)(jax.random.key(1), corrupted(PREFIX))
    # Larger weights than the initial ones, so that what is read shows.
    return jax.tree.map(lambda leaf: 10 * leaf if leaf.ndim > 1 else leaf, found)


def test_each_document_draws_its_own_prefix_uniformly() -> None:
    rows = 4000
    prefix = np.asarray(corrupted(PREFIX, rows=rows)["in_prefix"])
    first, alone, third = (prefix[:, a:b] for a, b in ((0, 6), (6, 7), (7, 14)))
    assert not prefix[:, 14:].any() and alone.all()
    for part in (first, third):
        assert (np.diff(part.astype(int)) <= 0).all()  # a prefix
    sizes = first.sum(1), third.sum(1)
    for found, size in zip(sizes, (6, 7), strict=True):
        share = np.bincount(found, minlength=size + 1) / rows
        np.testing.assert_allclose(share, [0, *[1 / (size - 1)] * (size - 1), 0], atol=0.03)
    assert abs(np.corrcoef(*sizes)[0, 1]) < 0.06
    half = dataclasses.replace(PREFIX, longest_prefix=0.5)
    limited = np.asarray(corrupted(half, rows=100)["in_prefix"])
    assert limited[:, :6].sum(1).max() == 2 and limited[:, 7:14].sum(1).max() == 3


def test_who_sees_whom(params: Any) -> None:
    batch = corrupted(PREFIX, seed=3)
    tokens = np.asarray(batch["tokens"])

    @jax.jit
    def outputs(tokens: Any) -> jax.Array:
        return apply(PREFIX.network, params, *PREFIX.inputs({**batch, "tokens": tokens}))

    prefix, document = np.asarray(batch["in_prefix"]), np.asarray(batch["segment_ids"])
    assert len({tuple(row) for row in prefix}) == len(prefix)
    before = np.asarray(outputs(tokens))
    for j in range(14):
        other = tokens.copy()
        other[:, j] = 6 + (other[:, j] + 7) % 40
        changed = (np.asarray(outputs(other)) != before).any(-1)
        for row in range(len(tokens)):
            sees = [
                document[row, i] == document[row, j] and (prefix[row, j] or j <= i)
                for i in range(14)
            ]
            np.testing.assert_array_equal(changed[row, :14], sees)


def test_only_what_follows_the_prefix_is_scored(params: Any) -> None:
    batch = corrupted(PREFIX)
    scored = jax.jit(lambda: PREFIX.loss(params, batch, None, None))()
    log_p = np.asarray(jax.nn.log_softmax(apply(PREFIX.network, params, *PREFIX.inputs(batch))))
    nll, count = 0.0, 0
    for row in range(4):
        for t in range(1, tiny.LENGTH):
            here, before = np.asarray(batch["segment_ids"])[row, [t, t - 1]]
            if here and here == before and not batch["in_prefix"][row, t]:
                nll -= log_p[row, t - 1, batch["tokens"][row, t]]
                count += 1
    assert scored.terms["lm"][1] == scored.metrics["unigram"][1] == count > 0
    np.testing.assert_allclose(scored.terms["lm"][0], nll, rtol=1e-5)


@pytest.mark.parametrize("loss_chunk", [0, 5])
def test_with_prefixes_of_one_token_it_is_a_causal_lm(params: Any, loss_chunk: int) -> None:
    shortest = dataclasses.replace(PREFIX, longest_prefix=0.0, loss_chunk=loss_chunk)
    causal = jax.jit(lambda: CAUSAL.loss(params, text(), None, None))()
    found = jax.jit(lambda b: shortest.loss(params, b, None, None))(corrupted(shortest))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), found, causal)


def test_a_prompt_is_read_from_both_sides() -> None:
    """In a left-padded batch with a cache, as whole texts under the mask of their prefixes."""
    gpt = models.gpt()
    network = PrefixGpt(gpt.config)
    model = dataclasses.replace(gpt, network=network)
    prompts: list[list[int]] = [[3, 9, 4, 17, 20], [8, 5, 12]]

    logits = jax.jit(lambda *text: apply(network, model.params, tiny.text_inputs(*text)))

    def likeliest(prompt: list[int]) -> list[int]:
        """The new tokens, with the prompt as prefix."""
        tokens, count = np.zeros((1, 8), int), len(prompt)
        tokens[0, :count] = prompt
        mask = np.tri(8, dtype=bool)[None] | (np.arange(8) < count)
        for at in range(count, count + 3):
            tokens[0, at] = logits(tokens, mask)[0, at - 1].argmax()
        found: list[int] = tokens[0, count : count + 3].tolist()
        return found

    expected = [likeliest(prompt) for prompt in prompts]
    settings: dict[str, Any] = {"max_new_tokens": 3, "ignore_eos": True}
    made = lmjax.generate(model, prompts, **settings)
    assert [one.token_ids.tolist() for one in made] == expected
    # A causal LM with these parameters goes on otherwise.
    causal = lmjax.generate(gpt, prompts, **settings)
    assert [one.token_ids.tolist() for one in causal] != expected
    tokens = np.array(prompts[:1])
    np.testing.assert_allclose(model(tokens), gpt(tokens), atol=1e-6)


def test_a_family_without_a_decoder_is_refused_by_name() -> None:
    model = {"type": "lmjax.models.bert.BertConfig", "trunk": dataclasses.asdict(tiny.TRUNK)}
    with pytest.raises(ConfigError, match=r"config\.model\.type: .*BertConfig.* is not a .*GptC"):
        make_objective({"type": "lmjax.objectives.prefix.PrefixLM"}, model, tiny.SIZE)
