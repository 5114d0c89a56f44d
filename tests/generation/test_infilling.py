"""Masks filled: in the order of confidence, in rounds, and by Gibbs sampling."""

import collections
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pytest
import scipy.stats

import lmjax
from lmjax.convert.pretrained import Pretrained
from lmjax.errors import ConfigError
from lmjax.generation import infilling
from lmjax.models.electra import ElectraConfig, ElectraDiscriminator
from lmjax.models.xlnet import Xlnet, XlnetConfig
from lmjax.objectives.base import apply
from tests import tiny
from tests.generation import models


@pytest.fixture(scope="module")
def bert() -> Pretrained:
    return models.bert()


def log_p(model: Pretrained, ids: np.ndarray) -> np.ndarray:
    """[length, vocab] of one text, written as the network reads it, roles left out."""
    length = 32
    assert model.tokenizer is not None
    tokens = np.full((1, length), model.tokenizer.roles["pad"])
    tokens[0, : len(ids)] = ids
    logits: Any = model(tokens, real=np.arange(length)[None] < len(ids))
    logits = logits if isinstance(logits, np.ndarray | jax.Array) else logits[0]
    return np.asarray(jax.nn.log_softmax(logits[0, : len(ids)].astype(np.float32)))


def masked(model: Pretrained, text: str) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    assert model.tokenizer is not None
    roles = model.tokenizer.roles
    (ids,) = model.tokenizer.encode_batch([text], special_tokens=True)
    ids = np.concatenate([[roles["cls"]], ids, [roles["sep"]]])
    return ids, np.flatnonzero(ids == roles["mask"]), roles


def best(row: np.ndarray, roles: dict[str, int]) -> int:
    allowed = row.copy()
    allowed[[index for role, index in roles.items() if role != "unk"]] = -np.inf
    return int(allowed.argmax())


TEXT = "a [MASK][MASK] b[MASK]cd[MASK]"


def test_confidence_fills_the_surest_mask_first(bert: Pretrained) -> None:
    short, made = lmjax.generate(bert, ["[MASK]z", TEXT])
    ids, at, roles = masked(bert, TEXT)
    expected = {}
    while (ids == roles["mask"]).any():
        p = log_p(bert, ids)
        tokens = {place: best(p[place], roles) for place in np.flatnonzero(ids == roles["mask"])}
        place = max(tokens, key=lambda place: p[place, tokens[place]])
        ids[place], expected[place] = tokens[place], p[place, tokens[place]]
    np.testing.assert_array_equal(made.token_ids, ids[at])
    np.testing.assert_allclose(made.log_probs, [expected[place] for place in at], atol=1e-4)
    assert bert.tokenizer is not None
    assert made.text == bert.tokenizer.decode(ids[1:-1]) and not made.follows
    assert len(short.token_ids) == 1 and short.text.endswith("z")


def test_mask_predict_predicts_the_least_probable_again(bert: Pretrained) -> None:
    rounds = 3
    (made,) = lmjax.generate(bert, TEXT, infill="mask_predict", iterations=rounds)
    ids, at, roles = masked(bert, TEXT)
    scores = np.zeros(len(at))
    for t in range(rounds):
        count = len(at) * (rounds - t) // rounds
        again = np.argsort(scores, kind="stable")[:count]
        ids[at[again]] = roles["mask"]
        p = log_p(bert, ids)
        for k in again:
            ids[at[k]] = best(p[at[k]], roles)
            scores[k] = p[at[k], ids[at[k]]]
    np.testing.assert_array_equal(made.token_ids, ids[at])
    np.testing.assert_allclose(made.log_probs, scores, atol=1e-4)


def test_gibbs_draws_from_the_conditionals(bert: Pretrained) -> None:
    """Of one mask, which is drawn anew in each sweep: the last draw has its distribution."""
    settings: dict[str, Any] = {"infill": "gibbs", "temperature": 0.5, "top_k": 3}
    made = lmjax.generate(
        bert, "q[MASK]r", iterations=2, num_return_sequences=400, seed=4, **settings
    )
    ids, at, roles = masked(bert, "q[MASK]r")
    row = log_p(bert, ids)[at[0]].astype(np.float64)
    row[[index for role, index in roles.items() if role != "unk"]] = -np.inf
    three = np.argsort(-row)[:3]
    p = np.exp(row[three] / 0.5)
    counts = [sum(int(text.token_ids[0]) == token for text in made) for token in three]
    assert sum(counts) == len(made)
    assert scipy.stats.chisquare(counts, p / p.sum() * len(made)).pvalue > 1e-3


def two_likeliest(row: np.ndarray, roles: dict[str, int]) -> dict[int, float]:
    """Their probabilities if no other token can be drawn."""
    row = row.astype(np.float64)
    row[[index for role, index in roles.items() if role != "unk"]] = -np.inf
    tokens = np.argsort(-row)[:2]
    p = np.exp(row[tokens])
    return dict(zip(tokens.tolist(), (p / p.sum()).tolist(), strict=True))


@pytest.mark.parametrize(
    ("how", "at_once"),
    [
        ({"infill": "ancestral", "iterations": 1}, 1.0),
        ({"infill": "ancestral", "iterations": 3}, 1 / 3),
        ({"infill": "any_order"}, 0.0),
    ],
)
def test_masks_are_drawn_in_a_random_order(
    bert: Pretrained, how: dict[str, Any], at_once: float
) -> None:
    """Of two masks: each first, or both at once in the share of the steps that coincide."""
    text = "q[MASK]r[MASK]"
    settings: dict[str, Any] = {"temperature": 1.0, "top_k": 2, **how}
    made = lmjax.generate(bert, text, num_return_sequences=1200, seed=5, **settings)
    ids, at, roles = masked(bert, text)
    first, second = (two_likeliest(log_p(bert, ids)[place], roles) for place in at)
    expected: collections.Counter[tuple[int, int]] = collections.Counter()
    for a, p in first.items():
        given = ids.copy()
        given[at[0]] = a
        after = two_likeliest(log_p(bert, given)[at[1]], roles)
        for b, q in after.items():
            expected[a, b] += p * q * (1 - at_once) / 2
        for b, q in second.items():
            expected[a, b] += p * q * at_once
    for b, q in second.items():
        given = ids.copy()
        given[at[1]] = b
        for a, p in two_likeliest(log_p(bert, given)[at[0]], roles).items():
            expected[a, b] += p * q * (1 - at_once) / 2
    found = collections.Counter(tuple(one.token_ids.tolist()) for one in made)
    assert found.keys() <= expected.keys()
    likely = [pair for pair, p in expected.items() if p > 0.01]
    counts = np.array([found[pair] for pair in likely])
    p = np.array([expected[pair] for pair in likely])
    assert scipy.stats.chisquare(counts, p / p.sum() * counts.sum()).pvalue > 1e-3


def test_xlnet_fills_groups_of_masks_in_a_random_order() -> None:
    """Each from the tokens before its group, which alone are attended to."""
    tokenizer = models.byte_tokenizer()
    config = XlnetConfig(models.TRUNK, vocab_size=tokenizer.size)
    model = models.pretrained(Xlnet(config), tokenizer)
    (ids,), mask = tokenizer.encode_batch([TEXT], special_tokens=True), tokenizer.roles["mask"]
    at = np.flatnonzero(ids == mask)

    @jax.jit
    def log_p(ids: jax.Array, known: jax.Array) -> jax.Array:
        read = tiny.text_inputs(ids[None], known[None, None])
        output, _ = apply(model.network, model.params, read, None, at[None])
        logits = apply(model.network, model.params, output, method="decode")
        return jax.nn.log_softmax(logits)[0]

    def filled(groups: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        text, known, logs = ids.copy(), ids != mask, np.zeros(len(at))
        text[at] = 7  # is not attended to
        for group in groups:
            rows = np.asarray(log_p(text, known))
            for k in group:
                text[at[k]] = best(rows[k], tokenizer.roles)
                logs[k] = rows[k, text[at[k]]]
            known[at[list(group)]] = True
        return text[at], logs

    expected = {}
    for last in range(len(at)):
        tokens, logs = filled([[k for k in range(len(at)) if k != last], [last]])
        expected[tuple(tokens.tolist())] = logs
    assert len(expected) > 2
    settings: dict[str, Any] = {"infill": "any_order", "group_size": 3}
    likeliest: dict[str, Any] = {"temperature": 1.0, "top_k": 1, "num_return_sequences": 12}
    found = set()
    for made in lmjax.generate(model, [TEXT], **settings, **likeliest):
        found.add(tuple(made.token_ids.tolist()))
        np.testing.assert_allclose(made.log_probs, expected[tuple(made.token_ids)], atol=1e-4)
    assert len(found) > 2
    # Without `infill`, the text is continued.
    (made,) = lmjax.generate(model, [TEXT], max_new_tokens=3, ignore_eos=True)
    assert made.follows and len(made.token_ids) == 3


def test_a_row_is_filled_as_it_is_alone(bert: Pretrained) -> None:
    settings: dict[str, Any] = {"infill": "gibbs", "temperature": 1.0, "iterations": 3}
    (alone,) = lmjax.generate(bert, TEXT, **settings)
    among = lmjax.generate(bert, ["[MASK] and a text that is longer [MASK]", TEXT], **settings)
    np.testing.assert_array_equal(alone.token_ids, among[1].token_ids)


def test_many_rows_are_filled_a_few_at_a_time(
    bert: Pretrained, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"temperature": 1.0, "num_return_sequences": 5}
    whole = lmjax.generate(bert, [TEXT, "a[MASK]"], **settings)
    monkeypatch.setattr(infilling, "_MOST_LOGITS", 3 * 32 * bert.network.config.vocab_size)
    parts = lmjax.generate(bert, [TEXT, "a[MASK]"], **settings)
    assert [made.text for made in parts] == [made.text for made in whole]


def test_masks_are_appended_where_there_are_none() -> None:
    model = models.electra()
    (made,) = lmjax.generate(model, "ab", max_new_tokens=5)
    assert len(made.token_ids) == 5 and made.text.startswith("ab")
    assert model.tokenizer is not None
    roles = {index for role, index in model.tokenizer.roles.items() if role != "unk"}
    assert roles.isdisjoint(made.token_ids.tolist())


def test_what_generates_nothing_is_refused_by_name(bert: Pretrained) -> None:
    trunk = models.TRUNK
    discriminator = models.pretrained(
        ElectraDiscriminator(ElectraConfig(trunk, max_length=64, vocab_size=40))
    )
    with pytest.raises(ConfigError, match="ElectraDiscriminator cannot generate text"):
        lmjax.generate(discriminator, [[3, 4]])
    with pytest.raises(ConfigError, match="num_beams: applies to left-to-right generation"):
        lmjax.generate(bert, TEXT, num_beams=3)
    with pytest.raises(ConfigError, match="infill: applies to masked models, but Gpt"):
        lmjax.generate(models.gpt(), [[3, 4]], infill="mask_predict")
    with pytest.raises(ConfigError, match="group_size: infill='gibbs' has no groups"):
        lmjax.generate(bert, TEXT, infill="gibbs", temperature=1.0, group_size=2)
    with pytest.raises(ConfigError, match="max_new_tokens: a text of 66 tokens"):
        lmjax.generate(bert, "ab", max_new_tokens=62)
