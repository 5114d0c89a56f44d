"""Scores of texts, each against a loop that reads one text at a time, and transformers'."""

import dataclasses
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import lmjax
from lmjax.convert.pretrained import Pretrained
from lmjax.data.tokenizers import Tokenizer, wordpiece
from lmjax.errors import ConfigError
from lmjax.evaluation.scoring import (
    Passage,
    _arrays,
    _batches,
    _Row,
    methods_of,
    passage_scores,
    token_scores,
)
from lmjax.models.bert import BertConfig, BertEncoder, BertForPreTraining
from lmjax.models.electra import Electra, ElectraConfig
from lmjax.models.gpt import Gpt, GptConfig
from lmjax.models.xlnet import Xlnet, XlnetConfig
from lmjax.nn.masks import as_mask
from tests import tiny
from tests.words import ROLES, SIZE, random_model, trunk

CLS, SEP, MASK, END = 2, 3, 4, 5
TEXTS = ["w6 w9 w7 w7", "w8", "w10 w11 w12 w13 w6 w20 w21 w22 w23"]

MODELS = {
    "gpt": Gpt(GptConfig(trunk(norm="pre"), max_length=16, vocab_size=SIZE)),
    "bert": BertForPreTraining(BertConfig(trunk(), max_length=16, vocab_size=SIZE)),
    "xlnet": Xlnet(XlnetConfig(trunk(), vocab_size=SIZE)),
    "electra": Electra(
        ElectraConfig(
            trunk(activation="gelu"),
            embedding_size=8,
            generator_size=0.5,
            max_length=16,
            vocab_size=SIZE,
        )
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def named(request: pytest.FixtureRequest) -> tuple[str, Pretrained]:
    return request.param, random_model(MODELS[request.param])


def test_a_special_token_that_a_text_spells_out_is_text(named: tuple[str, Pretrained]) -> None:
    _, model = named
    unknown = 1  # a word like any that the tokenizer has not
    passages = [Passage(np.array([6, unknown, 7, unknown]))]
    (expected,) = passage_scores(model, passages)
    (found,) = token_scores(model, ["w6 [MASK] w7 [EOD]"])
    np.testing.assert_array_equal(found, expected.logs)


def log_softmax(x: Any) -> np.ndarray:
    x = np.asarray(x, np.float64)
    return x - x.max(-1, keepdims=True) - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1))


def xlnet_query(model: Pretrained, ids: list[int], target: int, sees: np.ndarray) -> np.ndarray:
    """log p of all tokens at `target`, perm_mask written out."""
    network: Any = model.network
    inputs = tiny.text_inputs([ids], as_mask(jnp.asarray(sees)[None]))
    output, _ = network.apply({"params": model.params}, inputs, None, jnp.array([[target]]))
    logits = network.apply({"params": model.params}, output, method="decode")
    return log_softmax(logits[0, 0])


def one_by_one(model: Pretrained, method: str, ids: list[int], at: int) -> float:
    """The score of token `at`, read alone from texts that end where they must."""
    if method == "causal":
        return log_softmax(model(np.array([[END, *ids[:at]]]))[0, -1])[ids[at]]
    count = len(ids)
    if method == "left_to_right":
        # What stands behind the token is not even there.
        sees = np.tril(np.ones((at + 1, at + 1), bool), -1)
        return xlnet_query(model, [*ids[:at], 0], at, sees)[ids[at]]
    # To the word tokenizer of these tests a text is one word.
    hidden = slice(at, count if method == "pseudo_within_word" else at + 1)
    if isinstance(model.network, Xlnet):
        sees = np.ones((count, count), bool)
        sees[:, hidden] = False
        # Another token in its place: no one may see it.
        return xlnet_query(model, [*ids[:at], 6, *ids[at + 1 :]], at, sees)[ids[at]]
    part = "discriminator" if method == "discriminator" else "generator"
    single = Pretrained(*model.network.part(model.params, part))
    if method == "discriminator":
        logit = float(single(np.array([[CLS, *ids, SEP]]))[0, at + 1])
        return -np.log1p(np.exp(logit))
    rest = [MASK if i < hidden.stop else id_ for i, id_ in enumerate(ids)]
    masked = np.array([[CLS, *ids[:at], *rest[at:], SEP]])
    found = single(masked)
    logits = found[0] if isinstance(found, tuple) else found
    return log_softmax(logits[0, at + 1])[ids[at]]


def test_every_token_by_a_loop(named: tuple[str, Pretrained]) -> None:
    _, model = named
    assert model.tokenizer is not None
    for method in methods_of(model):
        found = token_scores(model, TEXTS, method)
        for ids, scores in zip(model.tokenizer.encode_batch(TEXTS), found, strict=True):
            assert len(scores) == len(ids)
            for at in range(0, len(ids), 3):
                expected = one_by_one(model, method, ids.tolist(), at)
                assert scores[at] == pytest.approx(expected, abs=2e-4), (method, at)


def test_a_text_scores_the_same_among_others(named: tuple[str, Pretrained]) -> None:
    _, model = named
    together = token_scores(model, [*TEXTS, "", TEXTS[0]])
    assert len(together[3]) == 0
    np.testing.assert_allclose(together[4], together[0], atol=1e-5)
    np.testing.assert_allclose(token_scores(model, TEXTS[:1])[0], together[0], atol=1e-4)


def test_within_a_word_what_follows_is_hidden_and_no_more() -> None:
    pieces = ["a", "b", "##c", "##d", *(f"x{i}" for i in range(SIZE - 10))]
    vocabulary = {name: i for i, name in enumerate([*ROLES, *pieces])}
    model = dataclasses.replace(
        random_model(MODELS["bert"]), tokenizer=Tokenizer(wordpiece(vocabulary, True))
    )
    (ids,) = model.tokenizer.encode_batch(["acd b bc"])  # type: ignore[union-attr]
    assert ids.tolist() == [6, 8, 9, 7, 7, 8]
    (found,) = token_scores(model, ["acd b bc"], "pseudo_within_word")
    for at, until in enumerate([3, 3, 3, 4, 6, 6]):
        masked = np.array([[CLS, *ids, SEP]])
        masked[0, at + 1 : until + 1] = MASK
        logits = model(masked)[0]
        assert found[at] == pytest.approx(log_softmax(logits[0, at + 1])[ids[at]], abs=1e-4)


def test_of_a_passage_only_its_end_is_scored(named: tuple[str, Pretrained]) -> None:
    _, model = named
    ids = np.array([6, 9, 7, 10, 11])
    for method in methods_of(model):
        whole, end, nothing = passage_scores(
            model, [Passage(ids), Passage(ids, 3), Passage(ids, 5)], method
        )
        np.testing.assert_allclose(end.logs, whole.logs[3:], atol=1e-5)
        np.testing.assert_array_equal(end.greedy, whole.greedy[3:])
        assert len(nothing.logs) == len(nothing.greedy) == 0


def test_greedy_where_nothing_is_likelier() -> None:
    model = random_model(MODELS["gpt"])
    ids = [END]
    for _ in range(4):
        ids.append(int(np.argmax(model(np.array([ids]))[0, -1])))
    worse = [*ids[1:4], 6 if ids[4] != 6 else 7]
    best, last = passage_scores(model, [Passage(np.array(ids[1:])), Passage(np.array(worse))])
    assert best.greedy.all()
    assert last.greedy.tolist() == [True, True, True, False]


def test_batches_are_as_large_as_memory_allows() -> None:
    rows = [_Row(i, np.zeros(n, np.int32)) for i, n in enumerate([5, 1000, 7, 1001, 9] * 60)]
    made = _batches(rows, 50_000)
    assert sorted(row.text for chosen, _ in made for row in chosen) == list(range(300))
    for chosen, rows_of_shape in made:
        tokens, real, *_ = _arrays(chosen, rows_of_shape, 0)
        size, length = tokens.shape
        assert size * length <= 1 << 14 and size * length * 50_000 <= 1 << 26
        assert len(chosen) <= size and length % 4 == 0
        assert real.sum(1).tolist()[: len(chosen)] == [len(row.tokens) for row in chosen]


def test_what_cannot_be_scored_is_refused() -> None:
    model = random_model(MODELS["gpt"])
    with pytest.raises(ConfigError, match=r"method: Gpt does not support 'pseudo'; .* causal"):
        token_scores(model, TEXTS, "pseudo")
    with pytest.raises(ConfigError, match="a text of 31 tokens does not fit the 16 rows"):
        token_scores(model, ["w6 " * 30])
    encoder = random_model(BertEncoder(BertConfig(trunk(), max_length=16, vocab_size=SIZE)))
    with pytest.raises(ConfigError, match="a BertEncoder without a language-model head"):
        token_scores(encoder, TEXTS)
    nameless = Pretrained(model.network, model.params)
    with pytest.raises(ConfigError, match="a Gpt without a tokenizer"):
        token_scores(nameless, TEXTS)


@pytest.mark.parametrize("name", ["gpt", "bert"])
def test_transformers_scores_the_same(name: str, tmp_path: pathlib.Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    model = random_model(MODELS[name])
    lmjax.save_huggingface(model, tmp_path / "m")
    kind = {"gpt": "GPT2LMHeadModel", "bert": "BertForPreTraining"}[name]
    theirs = getattr(transformers, kind).from_pretrained(tmp_path / "m").eval()
    assert model.tokenizer is not None
    for ids, scores in zip(
        model.tokenizer.encode_batch(TEXTS), token_scores(model, TEXTS), strict=True
    ):
        tokens = torch.tensor([[END, *ids] if name == "gpt" else [CLS, *ids, SEP]]).long()
        with torch.no_grad():
            if name == "gpt":
                logs = theirs(tokens).logits.log_softmax(-1)[0, :-1]
                expected = logs[torch.arange(len(ids)), tokens[0, 1:]].numpy()
            else:
                rows = tokens.repeat(len(ids), 1)
                here = torch.arange(len(ids))
                rows[here, here + 1] = MASK
                logs = theirs(rows).prediction_logits.log_softmax(-1)
                expected = logs[here, here + 1, tokens[0, 1:-1]].numpy()
        np.testing.assert_allclose(scores, expected, atol=1e-4)
